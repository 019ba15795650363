import pytest

from askd_ray.audio.units import (
    PADDED_SAMPLES,
    SAMPLES_PER_POSITION,
    decoding_window_samples,
    samples_of,
    window_samples,
)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("silence_s", [0.01, 0.3, 0.6])
def test_window_positions_never_equal_mel_bands(n_mels: int, silence_s: float):
    # Every clip whose window is one encoder position longer than the one before, from 0 to 30 s.
    for n_samples in range(0, PADDED_SAMPLES + 1, SAMPLES_PER_POSITION):
        window = decoding_window_samples(n_samples, silence_s, n_mels)
        assert window // SAMPLES_PER_POSITION != n_mels
        assert window % SAMPLES_PER_POSITION == 0
        assert window_samples(n_samples, silence_s) <= window <= PADDED_SAMPLES
        # Rounded up to a step, and one step more for the window that must not be.
        assert window < window_samples(n_samples, silence_s) + 2 * samples_of(0.2)


def test_window_with_as_many_positions_as_mel_bands_is_one_step_longer():
    assert decoding_window_samples(samples_of(1.2), 0.3, n_mels=80) == samples_of(1.8)
    assert decoding_window_samples(samples_of(1.2), 0.3, n_mels=128) == samples_of(1.6)
