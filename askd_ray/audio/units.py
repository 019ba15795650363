"""Whisper's audio units, and the conversion of seconds to samples."""

SAMPLE_RATE_HZ = 16_000
N_FFT = 400  # samples in an analysis window: 25 ms
HOP_LENGTH = 160  # samples from one frame to the next: 10 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_LENGTH  # 100 log-mel frames a second
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # 20 ms for each encoder position: the second convolution halves the frames
PADDED_S = 30.0  # the window that Whisper was trained with
PADDED_SAMPLES = int(PADDED_S * SAMPLE_RATE_HZ)  # 480,000
PADDED_FRAMES = PADDED_SAMPLES // HOP_LENGTH  # 3,000
WINDOW_STEP_SAMPLES = SAMPLE_RATE_HZ // 5  # 0.2 s: decoding windows are multiples of it, so that clips share windows


def samples_of(seconds: float) -> int:
    """Return the number of samples nearest to ``seconds``."""
    return round(seconds * SAMPLE_RATE_HZ)


def window_samples(n_samples: int, silence_s: float) -> int:
    """Return the length of a clip's trimmed window in samples: the clip and ``silence_s``.

    Rounded up to a multiple of :data:`SAMPLES_PER_POSITION`, and at most 30 s.
    """
    n_needed = n_samples + samples_of(silence_s)
    return min(-(-n_needed // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION, PADDED_SAMPLES)


def decoding_window_samples(n_samples: int, silence_s: float, n_mels: int) -> int:
    """Return the length of the trimmed window in which the engine decodes a clip: a multiple of 0.2 s, at most 30 s.

    The window never has ``n_mels`` encoder positions. CTranslate2's generate, align and detect_language distinguish
    encoder states ``(batch, positions, d_model)`` from a log-mel ``(batch, n_mels, n_frames)`` by the second dimension
    (``is_encoded`` in its layers/whisper.h). If that is ``n_mels``, they encode the states again without an error, and
    the result is garbage. With 80 mels this is the window of 1.6 s, so it becomes 1.8 s.
    """
    window = window_samples(n_samples, silence_s)
    window = -(-window // WINDOW_STEP_SAMPLES) * WINDOW_STEP_SAMPLES
    if window == n_mels * SAMPLES_PER_POSITION:
        window += WINDOW_STEP_SAMPLES
    return min(window, PADDED_SAMPLES)
