"""How many threads a model makes good use of: the service and the measurement of speed ask it alike."""

import time

import numpy as np

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.models.bundle import BundleInfo, open_engine

_TRIES_S = 1.5  # to find out how many threads suit a model
_REST_S = 0.25  # OpenMP's threads wait awake for 0.2 s, and take the cores from others
_MIN_GAIN = 1.3  # from twice the threads: they take the place of a second call


def allocate_threads(info: BundleInfo, max_threads: int) -> int:
    """Return on how many threads of the CPU a call of a model should run: a power of two, at most ``max_threads``.

    The threads of a call wait for each other after each of its many products. Those of a small model are so small that
    two threads may take longer than one, and two calls side by side are better. So a clip is timed with one thread and
    with two, with two and four and so on, for as long as twice the threads pay.

    Raises :class:`AskdError` when the model cannot be loaded.
    """
    threads = 1
    while 2 * threads <= max_threads and _gain(info, threads, 2 * threads) >= _MIN_GAIN:
        threads *= 2
    return threads


def _gain(info: BundleInfo, few: int, many: int) -> float:
    """Return how many times as fast a clip is with many threads as with few: the best of some tries, in turn."""
    engines = [open_engine(info, threads=threads) for threads in (few, many)]
    clip, blip = (np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32) for seconds in (3.0, 0.1))
    trimmed = engines[0].window_samples(blip) < engines[0].window_samples(clip)
    work = [clip, blip, blip, blip, blip] if trimmed else [clip]  # the blips' steps stand in for those of words
    best, ends_at = [float("inf")] * 2, time.monotonic() + _TRIES_S
    while time.monotonic() < ends_at:
        for i, engine in enumerate(engines):
            time.sleep(_REST_S)
            begun = time.perf_counter()
            for waveform in work:
                engine.transcribe([waveform])
            best[i] = min(best[i], time.perf_counter() - begun)
    return best[0] / best[1]
