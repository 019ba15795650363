"""Whisper's units, derived from one another, and the one place where seconds become samples."""

SAMPLE_RATE_HZ = 16_000
N_FFT = 400  # samples in an analysis window: 25 ms
HOP_LENGTH = 160  # samples from one frame to the next: 10 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_LENGTH  # 100 log-mel frames a second
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # the encoder's second convolution halves the frames: 20 ms a position
PADDED_S = 30.0  # the window that Whisper was trained on
PADDED_SAMPLES = int(PADDED_S * SAMPLE_RATE_HZ)  # 480,000
PADDED_FRAMES = PADDED_SAMPLES // HOP_LENGTH  # 3,000
WINDOW_STEP_SAMPLES = SAMPLE_RATE_HZ // 5  # 0.2 s: windows are decoded in such steps, so that similar clips share one


def samples_of(seconds: float) -> int:
    """Return the number of samples nearest to ``seconds``."""
    return round(seconds * SAMPLE_RATE_HZ)


def window_samples(n_samples: int, silence_s: float) -> int:
    """Return the length of the trimmed window of a clip: the clip and ``silence_s``, in whole encoder positions.

    Rounded up to a multiple of :data:`SAMPLES_PER_POSITION` and never beyond the 30 s that Whisper has positions for.
    """
    wanted = n_samples + samples_of(silence_s)
    return min(-(-wanted // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION, PADDED_SAMPLES)


def decoding_window_samples(n_samples: int, silence_s: float, n_mels: int) -> int:
    """Return the length of the trimmed window that the engine decodes a clip in: a multiple of 0.2 s, at most 30 s.

    It never has ``n_mels`` encoder positions. CTranslate2's generate, align and detect_language tell encoder states
    ``(batch, positions, d_model)`` from a log-mel ``(batch, n_mels, n_frames)`` by their second dimension
    (``is_encoded`` in its layers/whisper.h): where that is ``n_mels``, they encode the states a second time, silently,
    and the model hears noise. With 80 mels that is the window of 1.6 s, which becomes 1.8 s.
    """
    window = window_samples(n_samples, silence_s)
    window = -(-window // WINDOW_STEP_SAMPLES) * WINDOW_STEP_SAMPLES
    if window == n_mels * SAMPLES_PER_POSITION:
        window += WINDOW_STEP_SAMPLES
    return min(window, PADDED_SAMPLES)
