"""Whisper's audio units, the conversion of seconds to samples, and the windows of clips."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from askd_ray.config.schema import Window

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


def window_samples(n_samples: int, silence_s: float, min_s: float = 0.0) -> int:
    """Return the length of a clip's trimmed window in samples: the clip and ``silence_s``, at least ``min_s``.

    Rounded up to a multiple of :data:`SAMPLES_PER_POSITION`, and at most 30 s.
    """
    return int(windows_samples(np.array(n_samples), np.array(silence_s), min_s))


def windows_samples(
    n_samples: NDArray[np.int64], silence_s: NDArray[np.float64], min_s: float = 0.0
) -> NDArray[np.int64]:
    """Return :func:`window_samples` of many clips."""
    n_needed = np.maximum(n_samples + np.rint(silence_s * SAMPLE_RATE_HZ).astype(np.int64), samples_of(min_s))
    return np.minimum(-(-n_needed // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION, PADDED_SAMPLES)


@dataclass(frozen=True)
class DecodingWindow:
    """The trimmed window in which a clip is decoded: the clip and ``silence_s`` of silence, at least ``min_s``.

    None in the place of a DecodingWindow means windows of 30 s.
    """

    silence_s: float
    min_s: float = 0.0

    @classmethod
    def of(cls, settings: Window) -> "DecodingWindow":
        """Return the window of a recipe, in which dev is decoded during the training."""
        return cls(settings.silence_s, settings.min_s)

    def samples(self, n_samples: int, n_mels: int) -> int:
        """Return the length of a clip's window in samples: a multiple of 0.2 s, at most 30 s.

        The window never has ``n_mels`` encoder positions. CTranslate2's generate, align and detect_language distinguish
        encoder states ``(batch, positions, d_model)`` from a log-mel ``(batch, n_mels, n_frames)`` by the second
        dimension (``is_encoded`` in its layers/whisper.h). If that is ``n_mels``, they encode the states again without
        an error, and the result is garbage. With 80 mels this is the window of 1.6 s, so it becomes 1.8 s.
        """
        window = window_samples(n_samples, self.silence_s, self.min_s)
        window = -(-window // WINDOW_STEP_SAMPLES) * WINDOW_STEP_SAMPLES
        if window == n_mels * SAMPLES_PER_POSITION:
            window += WINDOW_STEP_SAMPLES
        return min(window, PADDED_SAMPLES)

    def __str__(self) -> str:
        """Return the window in words, as reports name it."""
        at_least = f", at least {self.min_s:g} s" if self.min_s else ""
        return f"clip + {self.silence_s:g} s{at_least}"
