"""Split recordings of any length into chunks that fit a model: at pauses, or else at the quietest point."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import Span

MAX_CHUNK_S = 20.0  # Whisper takes 30 s, but a student's training data has few clips longer than 20 s
SEARCH_S = 5.0  # search this far back from a chunk's end for a quiet point: pauses come more often than that
MIN_CHUNK_S = 1.0  # so that no chunk is a fragment of a word
LONG_PAUSE_S = 2.0  # a longer pause is left out: models fill it with words
QUIET_S = 0.1  # loudness is measured over this length: with less, the gap before a plosive would count as quiet
_STEP_S = 0.01


def split_into_chunks(waveform: Waveform, speech: Sequence[Span]) -> list[Span]:
    """Return the chunks of a recording to transcribe, in order: at most 20 s each, without overlap.

    The chunks contain all of ``speech``. They leave out pauses of more than 2 s, since models invent words in silence.
    A recording of up to 20 s with any speech is one whole chunk. A longer one is cut at the longest pause in the second
    half of a chunk; speech without pauses is cut where it is quietest (:func:`quietest`).
    """
    max_samples = samples_of(MAX_CHUNK_S)
    if speech and len(waveform) <= max_samples:
        return [Span(0, len(waveform))]
    chunks: list[Span] = []
    rest = list(speech)
    while rest:
        start = rest[0].start
        fitting = [i for i, span in enumerate(rest) if span.end - start <= max_samples]
        if not fitting:  # the first span alone is too long
            last = min(start + max_samples, rest[0].end - samples_of(MIN_CHUNK_S))
            cut = quietest(waveform, last - samples_of(SEARCH_S), last)
            chunks.append(Span(start, cut))
            rest[0] = Span(cut, rest[0].end)
            continue
        n = len(fitting) if len(fitting) == len(rest) else _best_pause(rest, fitting, start + max_samples // 2)
        chunks += _without_long_pauses(rest[:n])
        rest = rest[n:]
    return chunks


def _best_pause(spans: Sequence[Span], fitting: Sequence[int], from_sample: int) -> int:
    """Return how many of the fitting spans come before the longest pause after ``from_sample``."""
    pauses = {i + 1: spans[i + 1].start - spans[i].end for i in fitting if spans[i].end >= from_sample}
    return max(pauses, key=lambda n: (pauses[n], n)) if pauses else len(fitting)


def _without_long_pauses(spans: Sequence[Span]) -> list[Span]:
    """Join spans into chunks; a long pause between two spans starts a new chunk."""
    chunks = [spans[0]]
    for span in spans[1:]:
        if span.start - chunks[-1].end > samples_of(LONG_PAUSE_S):
            chunks.append(span)
        else:
            chunks[-1] = Span(chunks[-1].start, span.end)
    return chunks


def halves(waveform: Waveform, chunk: Span, speech: Sequence[Span]) -> tuple[Span, Span]:
    """Cut a chunk in two: at its longest pause near the middle, or else at the quietest point there."""
    quarter = chunk.n_samples // 4
    first, last = chunk.start + quarter, chunk.end - quarter
    pauses = [(b.start - a.end, (a.end + b.start) // 2) for a, b in pairwise(speech)]
    near = [(length, middle) for length, middle in pauses if first <= middle <= last]
    cut = max(near)[1] if near else quietest(waveform, first, last)
    return Span(chunk.start, cut), Span(cut, chunk.end)


def quietest(waveform: Waveform, first: int, last: int) -> int:
    """Return the middle of the quietest 100 ms between the samples ``first`` and ``last``."""
    width, step = samples_of(QUIET_S), samples_of(_STEP_S)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform[first:last], dtype=np.float64))])
    starts = np.arange(0, last - first - width + 1, step)
    loudness = energy[starts + width] - energy[starts]
    latest = len(starts) - 1 - int(np.argmin(loudness[::-1]))
    return first + int(starts[latest]) + width // 2
