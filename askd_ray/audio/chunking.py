"""Recordings of any length as stretches that a model can hear, cut in pauses and else where it is quietest."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import Span

MAX_CHUNK_S = 20.0  # of a stretch: Whisper takes 30, but a student hears few clips of more than 20 s in its training
SEARCH_S = 5.0  # how far back from a stretch's end a quiet place is looked for: pauses come more often than that
MIN_CHUNK_S = 1.0  # no stretch is shorter, so that none is a mere fragment of a word
LONG_PAUSE_S = 2.0  # a longer one is not heard: models fill it with words
QUIET_S = 0.1  # the length over which loudness is measured: shorter, and the gap before a plosive would do
_STEP_S = 0.01


def split_into_chunks(waveform: Waveform, speech: Sequence[Span]) -> list[Span]:
    """Return the stretches of a recording that are to be transcribed, in order: at most 20 s each, never overlapping.

    All of ``speech`` is in them, and no pause that is longer than all its padding: where nobody speaks a model invents
    words. A recording of up to 20 s in which somebody speaks is one stretch, whole. Longer ones are cut in the longest
    pause that the second half of a stretch has; speech without pauses is cut where it is quietest (:func:`quietest`).
    """
    most = samples_of(MAX_CHUNK_S)
    if speech and len(waveform) <= most:
        return [Span(0, len(waveform))]
    found: list[Span] = []
    rest = list(speech)
    while rest:
        start = rest[0].start
        fitting = [i for i, span in enumerate(rest) if span.end - start <= most]
        if not fitting:  # a span that is too long
            last = min(start + most, rest[0].end - samples_of(MIN_CHUNK_S))
            cut = quietest(waveform, last - samples_of(SEARCH_S), last)
            found.append(Span(start, cut))
            rest[0] = Span(cut, rest[0].end)
            continue
        n = len(fitting) if len(fitting) == len(rest) else _best_pause(rest, fitting, start + most // 2)
        found += _without_long_pauses(rest[:n])
        rest = rest[n:]
    return found


def _best_pause(spans: Sequence[Span], fitting: Sequence[int], from_sample: int) -> int:
    """Return how many of the spans that fit come before the longest pause behind ``from_sample``."""
    pauses = {i + 1: spans[i + 1].start - spans[i].end for i in fitting if spans[i].end >= from_sample}
    return max(pauses, key=lambda n: (pauses[n], n)) if pauses else len(fitting)


def _without_long_pauses(spans: Sequence[Span]) -> list[Span]:
    """Return spans as one stretch, or as several where long pauses lie between them."""
    found = [spans[0]]
    for span in spans[1:]:
        if span.start - found[-1].end > samples_of(LONG_PAUSE_S):
            found.append(span)
        else:
            found[-1] = Span(found[-1].start, span.end)
    return found


def halves(waveform: Waveform, stretch: Span, speech: Sequence[Span]) -> tuple[Span, Span]:
    """Cut a stretch in its longest pause near the middle, or else where it is quietest there."""
    quarter = stretch.n_samples // 4
    first, last = stretch.start + quarter, stretch.end - quarter
    pauses = [(b.start - a.end, (a.end + b.start) // 2) for a, b in pairwise(speech)]
    near = [(length, middle) for length, middle in pauses if first <= middle <= last]
    cut = max(near)[1] if near else quietest(waveform, first, last)
    return Span(stretch.start, cut), Span(cut, stretch.end)


def quietest(waveform: Waveform, first: int, last: int) -> int:
    """Return the middle of the quietest 100 ms between the samples ``first`` and ``last``."""
    width, step = samples_of(QUIET_S), samples_of(_STEP_S)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform[first:last], dtype=np.float64))])
    starts = np.arange(0, last - first - width + 1, step)
    loudness = energy[starts + width] - energy[starts]
    latest = len(starts) - 1 - int(np.argmin(loudness[::-1]))
    return first + int(starts[latest]) + width // 2
