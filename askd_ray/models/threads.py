"""Choose the number of threads for a model; for the service and for speed measurements."""

import time

import numpy as np

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.models.bundle import BundleInfo, open_engine

_MEASURE_S = 1.5  # time for each comparison of two thread counts
_PAUSE_S = 0.25  # OpenMP's idle threads spin for 0.2 s and block the cores for others
_MIN_SPEEDUP = 1.3  # that twice the threads must bring, because a second call could use them instead


def allocate_threads(info: BundleInfo, max_threads: int) -> int:
    """Return the number of CPU threads for one call of a model: a power of two, at most ``max_threads``.

    The threads of a call synchronise after each matrix product. A small model has small products: two threads may be
    slower than one, and two parallel calls are better. So this times a clip with one thread and with two, with two and
    with four, and so on, as long as doubling the threads pays.

    Raises :class:`AskdError` when the model cannot be loaded.
    """
    threads = 1
    while 2 * threads <= max_threads and _speedup(info, threads, 2 * threads) >= _MIN_SPEEDUP:
        threads *= 2
    return threads


def _speedup(info: BundleInfo, few: int, many: int) -> float:
    """Return the speedup of a clip with many threads over few: the best time of each, measured alternately."""
    engines = [open_engine(info, threads=threads) for threads in (few, many)]
    clip, blip = (np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32) for seconds in (3.0, 0.1))
    trimmed = engines[0].window_samples(blip) < engines[0].window_samples(clip)
    work = (
        [clip, blip, blip, blip, blip] if trimmed else [clip]
    )  # each short clip adds a few decoder steps, like words do
    best, ends_at = [float("inf")] * 2, time.monotonic() + _MEASURE_S
    while time.monotonic() < ends_at:
        for i, engine in enumerate(engines):
            time.sleep(_PAUSE_S)
            begun = time.perf_counter()
            for waveform in work:
                engine.transcribe([waveform])
            best[i] = min(best[i], time.perf_counter() - begun)
    return best[0] / best[1]
