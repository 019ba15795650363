"""Whisper's units, derived from one another, and the one place where seconds become samples."""

SAMPLE_RATE_HZ = 16_000
N_FFT = 400  # samples in an analysis window: 25 ms
HOP_LENGTH = 160  # samples from one frame to the next: 10 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_LENGTH  # 100 log-mel frames a second
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # the encoder's second convolution halves the frames: 20 ms a position
PADDED_S = 30.0  # the window that Whisper was trained on
PADDED_SAMPLES = int(PADDED_S * SAMPLE_RATE_HZ)  # 480,000
PADDED_FRAMES = PADDED_SAMPLES // HOP_LENGTH  # 3,000


def samples_of(seconds: float) -> int:
    """Return the number of samples nearest to ``seconds``."""
    return round(seconds * SAMPLE_RATE_HZ)


def window_samples(n_samples: int, silence_s: float) -> int:
    """Return the length of the trimmed window of a clip: the clip and ``silence_s``, in whole encoder positions.

    Rounded up to a multiple of :data:`SAMPLES_PER_POSITION` and never beyond the 30 s that Whisper has positions for.
    """
    wanted = n_samples + samples_of(silence_s)
    return min(-(-wanted // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION, PADDED_SAMPLES)
