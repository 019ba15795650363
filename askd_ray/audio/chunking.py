"""Long audio as stretches that fit Whisper's 30 s, cut where it is quietest."""

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import PADDED_SAMPLES, samples_of

SEARCH_S = 5.0  # how far back from a stretch's end a quiet place is looked for: pauses come more often than that
LEAST_S = 1.0  # no stretch is shorter, so that none is a mere fragment of a word
QUIET_S = 0.1  # the length over which loudness is measured: shorter, and the gap before a plosive would do
_STEP_S = 0.01


def split(waveform: Waveform) -> list[Waveform]:
    """Cut a waveform into stretches of at most 30 s; together they are the waveform, sample for sample.

    Each cut lies in the middle of the quietest 100 ms within the last 5 s of a stretch, the latest where several are
    equally quiet. The stretches are views, shape ``(n_samples,)``; audio of up to 30 s comes back whole.
    """
    stretches: list[Waveform] = []
    rest = waveform
    while len(rest) > PADDED_SAMPLES:
        last = min(PADDED_SAMPLES, len(rest) - samples_of(LEAST_S))
        cut = quietest(rest, last - samples_of(SEARCH_S), last)
        stretches.append(rest[:cut])
        rest = rest[cut:]
    return [*stretches, rest]


def quietest(waveform: Waveform, first: int, last: int) -> int:
    """Return the middle of the quietest 100 ms between the samples ``first`` and ``last``."""
    width, step = samples_of(QUIET_S), samples_of(_STEP_S)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform[first:last], dtype=np.float64))])
    starts = np.arange(0, last - first - width + 1, step)
    loudness = energy[starts + width] - energy[starts]
    latest = len(starts) - 1 - int(np.argmin(loudness[::-1]))
    return first + int(starts[latest]) + width // 2
