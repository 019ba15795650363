from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.chunking import LONG_PAUSE_S, MAX_CHUNK_S, quietest, split_into_chunks
from askd_ray.audio.units import PADDED_SAMPLES, samples_of
from askd_ray.audio.vad import Span


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, samples_of(seconds)).astype(np.float32)


def spans(*pairs: tuple[float, float]) -> list[Span]:
    return [Span(samples_of(a), samples_of(b)) for a, b in pairs]


def seconds(chunks: list[Span]) -> list[tuple[float, float]]:
    return [(s.start / 16_000, s.end / 16_000) for s in chunks]


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.tuples(st.floats(0.1, 50.0), st.floats(0.0, 6.0)), max_size=12))
def test_chunks_cover_speech_once_within_the_limit(lengths: list[tuple[float, float]]):
    speech, at = list[Span](), 0
    for length, pause in lengths:
        speech.append(Span(at, at + samples_of(length)))
        at = speech[-1].end + samples_of(pause)
    chunks = split_into_chunks(np.random.default_rng(0).standard_normal(at, dtype=np.float32), speech)
    assert all(0 < s.n_samples <= samples_of(MAX_CHUNK_S) for s in chunks)
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    covered = np.zeros(at, bool)
    for chunk in chunks:
        covered[chunk.start : chunk.end] = True
    for span in speech:
        assert covered[span.start : span.end].all()
    if at > samples_of(MAX_CHUNK_S):  # and no long pause
        spoken = np.zeros(at, bool)
        for span in speech:
            spoken[span.start : span.end] = True
        silent = np.flatnonzero(covered & ~spoken)
        runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
        assert all(len(run) <= samples_of(LONG_PAUSE_S) + 1 for run in runs)


def test_short_recording_with_speech_is_one_chunk():
    waveform = noise(20.0)
    assert split_into_chunks(waveform, spans((3.0, 4.0))) == [Span(0, len(waveform))]
    assert split_into_chunks(waveform, []) == []
    assert split_into_chunks(waveform[:0], []) == []


def test_cut_is_at_the_longest_pause_of_the_second_half():
    speech = spans((0.0, 4.0), (5.5, 11.0), (11.3, 15.0), (15.9, 18.0), (18.2, 30.0))
    assert seconds(split_into_chunks(noise(30.0), speech)) == [(0.0, 15.0), (15.9, 30.0)]


def test_speech_without_a_pause_is_cut_at_the_quietest_place():
    waveform = noise(45.0)
    waveform[samples_of(17.0) : samples_of(17.2)] *= 0.01
    first, second, third = seconds(split_into_chunks(waveform, spans((0.0, 45.0))))
    assert 17.0 < first[1] < 17.2
    assert first[1] == second[0] and second[1] == third[0] and third[1] == 45.0


def test_long_pauses_are_dropped():
    assert seconds(split_into_chunks(noise(25.0), spans((1.0, 2.0), (3.0, 4.0), (9.0, 10.0)))) == [
        (1.0, 4.0),
        (9.0, 10.0),
    ]


@settings(max_examples=50, deadline=None)
@given(pause_s=st.floats(0.1, 29.7), level=st.floats(0.0, 0.1))
def test_quietest_place_is_the_pause(pause_s: float, level: float):
    waveform = noise(30.0)
    pause = slice(samples_of(pause_s), samples_of(pause_s + 0.2))
    waveform[pause] *= level
    assert pause.start < quietest(waveform, 0, len(waveform)) < pause.stop


def test_latest_of_equally_quiet_places():
    waveform = np.zeros(PADDED_SAMPLES, np.float32)
    assert quietest(waveform, 0, PADDED_SAMPLES) == PADDED_SAMPLES - samples_of(0.05)
    assert quietest(waveform, 100, 5000) == pytest.approx(5000 - samples_of(0.05), abs=samples_of(0.01))
