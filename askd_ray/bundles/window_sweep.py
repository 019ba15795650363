"""Chooses a bundle's decoding window on dev clips: WER and runaways against the length of the window."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.decode_fallback import WindowedEngine
from askd_ray.results.windows import WindowScore, WindowSweep
from askd_ray.text.error_rate import count_each
from askd_ray.text.normalize import normalizer

_SILENCES_S, _MINS_S = (0.2, 0.4, 0.6, 1.0), (0.6, 1.0, 2.0)
_N_CLIPS, _N_SHORTEST = 120, 20
_MIN_SAVING = 0.1  # of the mean window: less is not worth leaving the window in which the student was chosen


@dataclass(frozen=True)
class _Decoded:
    """One clip in one window: the time that it took, its word errors, and whether the model wrote an end token."""

    seconds: float
    errors: int
    ended: bool


def window_grid(trained: DecodingWindow) -> list[DecodingWindow]:
    """Return the windows that an export compares: first that in which dev was decoded in training, then a grid."""
    grid = itertools.starmap(DecodingWindow, itertools.product(_SILENCES_S, _MINS_S))
    return list(dict.fromkeys([trained, *grid]))


def sweep_clips(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return up to 120 utterances, shortest first: the 20 shortest, and others spread evenly over the durations."""
    ordered = sorted(utterances, key=lambda u: (u.duration_s, u.id))
    shortest, others = ordered[:_N_SHORTEST], ordered[_N_SHORTEST:]
    n_others = min(_N_CLIPS - _N_SHORTEST, len(others))
    return shortest + [others[i] for i in np.linspace(0, len(others) - 1, n_others).round().astype(int)]


def sweep_windows(
    engine: WindowedEngine, utterances: Sequence[Utterance], windows: Sequence[DecodingWindow]
) -> WindowSweep:
    """Decode utterances of at most 30 s in each window, and choose one that is as good as the best.

    The best has the fewest runaways and then the lowest WER. Windows with as few runaways are as good if their WER is
    above the best one's by no more than one standard error of the difference, paired by clip. The first window, that of
    training, is chosen if it is as good and no other such window is shorter by a tenth in the mean; otherwise the
    shortest is. Nothing random or timed decides. Changes the engine's window.
    """
    waveforms = [waveform_of(u) for u in utterances]
    references = [normalizer(u.language)(u.text) for u in utterances]
    engine.transcribe(waveforms[:1], utterances[0].language)  # the first call takes longer
    decoded: dict[tuple[int, int], _Decoded] = {}  # by clip and window length: settings often give the same length
    lengths = np.zeros((len(windows), len(utterances)), int)
    for row, window in zip(lengths, windows, strict=True):
        engine.window = window
        for i, (utterance, waveform) in enumerate(zip(utterances, waveforms, strict=True)):
            row[i] = engine.window_samples(waveform)
            if (i, row[i]) not in decoded:
                begun = time.perf_counter()
                transcript = engine.transcribe([waveform], utterance.language)[0]
                seconds = time.perf_counter() - begun
                hypothesis = normalizer(utterance.language)(transcript.text)
                errors = count_each([references[i]], [hypothesis])[0].errors
                decoded[i, row[i]] = _Decoded(seconds, errors, transcript.ended)
    clips = [[decoded[i, length] for i, length in enumerate(row)] for row in lengths.tolist()]
    n_words = sum(len(reference.split()) for reference in references)
    window_s = lengths.mean(axis=1) / SAMPLE_RATE_HZ
    return _compared(windows, clips, window_s, n_words)


def _compared(
    windows: Sequence[DecodingWindow], clips: Sequence[Sequence[_Decoded]], window_s: NDArray[np.float64], n_words: int
) -> WindowSweep:
    """Return the sweep of windows from their clips and their mean lengths."""
    errors = np.array([[clip.errors for clip in row] for row in clips])
    runaways = [sum(not clip.ended for clip in row) for row in clips]
    best = min(range(len(windows)), key=lambda i: (runaways[i], errors[i].sum(), window_s[i]))
    scores = list[WindowScore]()
    for i, window in enumerate(windows):
        difference = errors[i] - errors[best]
        scores.append(
            {
                "silence_s": window.silence_s,
                "min_s": window.min_s,
                "window_s": round(float(window_s[i]), 3),
                "decoding_ms": round(1000 * sum(clip.seconds for clip in clips[i]) / len(clips[i]), 2),
                "wer": int(errors[i].sum()) / max(1, n_words),
                "runaways": runaways[i],
                "above_best": int(difference.sum()) / max(1, n_words),
                "standard_error": float(difference.std() * len(difference) ** 0.5) / max(1, n_words),
            }
        )
    as_good = [
        i
        for i, score in enumerate(scores)
        if score["runaways"] == runaways[best] and score["above_best"] <= score["standard_error"]
    ]
    chosen = min(as_good, key=lambda i: (window_s[i], errors[i].sum()))
    if 0 in as_good and window_s[chosen] > (1.0 - _MIN_SAVING) * window_s[0]:
        chosen = 0
    return {"clips": errors.shape[1], "words": n_words, "scores": scores, "chosen": chosen}


def chosen_window(sweep: WindowSweep) -> DecodingWindow:
    """Return the window that a sweep has chosen."""
    score = sweep["scores"][sweep["chosen"]]
    return DecodingWindow(score["silence_s"], score["min_s"])
