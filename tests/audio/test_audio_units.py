import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.audio.units import (
    PADDED_SAMPLES,
    SAMPLES_PER_POSITION,
    WINDOW_STEP_SAMPLES,
    DecodingWindow,
    samples_of,
    window_samples,
)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(("silence_s", "min_s"), [(0.01, 0.0), (0.3, 0.0), (0.6, 0.0), (0.3, 1.6), (0.3, 2.55)])
def test_window_positions_never_equal_mel_bands(n_mels: int, silence_s: float, min_s: float):
    # Every clip whose window is one encoder position longer than the one before, from 0 to 30 s.
    for n_samples in range(0, PADDED_SAMPLES + 1, SAMPLES_PER_POSITION):
        check_window(DecodingWindow(silence_s, min_s), n_samples, n_mels)


SECONDS = st.floats(0.0, 30.0)


@given(silence_s=SECONDS, min_s=SECONDS, n_samples=st.integers(0, PADDED_SAMPLES), n_mels=st.sampled_from([80, 128]))
def test_window_of_any_clip(silence_s: float, min_s: float, n_samples: int, n_mels: int):
    check_window(DecodingWindow(silence_s, min_s), n_samples, n_mels)


def check_window(window: DecodingWindow, n_samples: int, n_mels: int) -> None:
    n = window.samples(n_samples, n_mels)
    assert n // SAMPLES_PER_POSITION != n_mels
    assert n % WINDOW_STEP_SAMPLES == 0
    assert min(max(n_samples + samples_of(window.silence_s), samples_of(window.min_s)), PADDED_SAMPLES) <= n
    # Rounded up to a step, and one step more for the window that must not be.
    needed = window_samples(n_samples, window.silence_s, window.min_s)
    assert needed <= n < needed + 2 * WINDOW_STEP_SAMPLES
    assert n <= PADDED_SAMPLES


def test_window_with_as_many_positions_as_mel_bands_is_one_step_longer():
    for window, n_samples in ((DecodingWindow(0.3), samples_of(1.2)), (DecodingWindow(0.3, min_s=1.6), 0)):
        assert window.samples(n_samples, n_mels=80) == samples_of(1.8)
        assert window.samples(n_samples, n_mels=128) == samples_of(1.6)


def test_minimal_window_holds_for_short_clips_only():
    window = DecodingWindow(silence_s=0.4, min_s=1.0)
    assert [window.samples(samples_of(s), 80) for s in (0.0, 0.6, 0.7)] == [samples_of(s) for s in (1.0, 1.0, 1.2)]


def test_window_in_words():
    assert str(DecodingWindow(0.3)) == "clip + 0.3 s"
    assert str(DecodingWindow(0.6, 1.0)) == "clip + 0.6 s, at least 1 s"
