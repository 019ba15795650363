import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.chunking import LEAST_S, SEARCH_S, quietest, split
from askd_ray.audio.units import PADDED_SAMPLES, samples_of


@settings(max_examples=60, deadline=None)
@given(n_samples=st.integers(0, 5 * PADDED_SAMPLES), seed=st.integers(0, 2**16))
def test_no_sample_is_lost_or_doubled(n_samples: int, seed: int):
    waveform = np.random.default_rng(seed).standard_normal(n_samples, dtype=np.float32)
    stretches = split(waveform)
    assert np.array_equal(np.concatenate(stretches), waveform)
    assert max(len(s) for s in stretches) <= PADDED_SAMPLES
    assert min(len(s) for s in stretches) >= min(n_samples, samples_of(LEAST_S))
    assert all(len(s) >= PADDED_SAMPLES - samples_of(SEARCH_S + LEAST_S) for s in stretches[:-1])


@pytest.mark.parametrize("n_samples", [PADDED_SAMPLES + 1, PADDED_SAMPLES + samples_of(0.5), 2 * PADDED_SAMPLES])
def test_lengths_just_over_the_limit(n_samples: int):
    stretches = split(np.ones(n_samples, np.float32))
    assert sum(map(len, stretches)) == n_samples
    assert min(map(len, stretches)) >= samples_of(LEAST_S)


def test_up_to_30_s_stays_whole():
    waveform = np.ones(PADDED_SAMPLES, np.float32)
    assert [len(s) for s in split(waveform)] == [PADDED_SAMPLES]
    assert [len(s) for s in split(waveform[:0])] == [0]


@settings(max_examples=50, deadline=None)
@given(pause_s=st.floats(25.1, 29.7), level=st.floats(0.0, 0.1))
def test_the_cut_lies_in_the_pause(pause_s: float, level: float):
    waveform = np.random.default_rng(0).uniform(-1, 1, 2 * PADDED_SAMPLES).astype(np.float32)
    pause = slice(samples_of(pause_s), samples_of(pause_s + 0.2))
    waveform[pause] *= level
    assert pause.start < len(split(waveform)[0]) < pause.stop


def test_the_latest_of_equally_quiet_places_is_taken():
    assert quietest(np.zeros(PADDED_SAMPLES, np.float32), 0, PADDED_SAMPLES) == PADDED_SAMPLES - samples_of(0.05)
