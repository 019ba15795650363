"""Measures the latency of one clip at a time, so that systems can be compared although the machine is never idle."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from askd_ray.data.schema import Utterance
from askd_ray.evaluation.timed import TimedSystem
from askd_ray.progress import bar
from askd_ray.results.timing import Speedup

TURN_CLIPS = 10
_PAUSE_S = 0.3  # OpenMP's threads wait actively for 0.2 s
_REPLICATIONS = 10_000


@dataclass(frozen=True)
class TimedTranscripts:
    """The transcripts of one system and their latencies, clip by clip. ``latency_s`` has shape ``(n_clips,)``."""

    texts: tuple[str, ...]
    latency_s: NDArray[np.float64]

    def only(self, clips: Sequence[int]) -> "TimedTranscripts":
        """Return the transcripts of some clips, by number."""
        return TimedTranscripts(tuple(self.texts[i] for i in clips), self.latency_s[list(clips)])


def time_systems(
    systems: Mapping[str, TimedSystem], utterances: Sequence[Utterance], repeats: int = 1
) -> dict[str, TimedTranscripts]:
    """Give every clip to every system, one at a time, and return transcripts and latencies.

    The systems take turns of :data:`TURN_CLIPS` clips, and the first system rotates, so that a slow minute of the
    machine affects all systems. A turn begins with a pause, in which the threads of the previous system go to sleep,
    and with a clip that is not counted, which wakes the threads of the next system. With ``repeats``, the latency of a
    clip is the median.
    """
    names = list(systems)
    texts: dict[str, list[str]] = {name: [] for name in names}
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    with bar("time clips", len(utterances), "clip") as progress:
        for turn, start in enumerate(range(0, len(utterances), TURN_CLIPS)):
            clips = utterances[start : start + TURN_CLIPS]
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(_PAUSE_S)
                systems[name].transcribe(clips[0].audio, clips[0].language)
                for clip in clips:
                    text, took = _timed(systems[name], clip, repeats)
                    texts[name].append(text)
                    times[name].append(took)
            progress.advance(len(clips))
    return {name: TimedTranscripts(tuple(texts[name]), np.median(np.asarray(times[name]), axis=1)) for name in names}


def _timed(system: TimedSystem, clip: Utterance, repeats: int) -> tuple[str, list[float]]:
    text, took = "", list[float]()
    for _ in range(repeats):
        begun = time.perf_counter()
        text = system.transcribe(clip.audio, clip.language)
        took.append(time.perf_counter() - begun)
    return text, took


def evenly(utterances: Sequence[Utterance], n_clips: int) -> list[Utterance]:
    """Return up to ``n_clips`` of the utterances, spread evenly over their durations, shortest first."""
    ordered = sorted(utterances, key=lambda u: (u.duration_s, u.id))
    picked = np.linspace(0, len(ordered) - 1, min(n_clips, len(ordered))).round().astype(int) if ordered else []
    return [ordered[i] for i in picked]


def percentile_ms(latency_s: NDArray[np.float64], percentile: float) -> float:
    """Return a percentile (with linear interpolation) of at least one latency, in milliseconds."""
    return round(1000 * float(np.percentile(latency_s, percentile)), 2)


def speedup(baseline_s: NDArray[np.float64], system_s: NDArray[np.float64], seed: int = 0) -> Speedup:
    """Return how many times faster the system transcribes the median clip, with a 95 % bootstrap interval over clips.

    Both arrays are latencies ``(n_clips,)`` of the same clips in the same order, at least one. Clips are resampled in
    pairs.
    """
    assert baseline_s.shape == system_s.shape and system_s.size
    rng = np.random.default_rng(seed)
    ratios = np.empty(_REPLICATIONS)
    for i in range(_REPLICATIONS):
        drawn = rng.integers(system_s.size, size=system_s.size)
        ratios[i] = np.median(baseline_s[drawn]) / np.median(system_s[drawn])
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(np.median(baseline_s) / np.median(system_s))
    return {"value": round(value, 3), "low": round(float(low), 3), "high": round(float(high), 3)}
