import numpy as np
import pytest
import torch
import torchaudio.functional

from askd_ray.audio.resample import Resampler, resample


def chord(rate_hz: int, seconds: float = 1.5) -> np.ndarray:
    """Return some tones up to 3.3 kHz, as speech has them."""
    t = np.arange(round(rate_hz * seconds) + 77) / rate_hz
    return (0.1 * sum(np.sin(2 * np.pi * f * t) for f in (150, 440, 1000, 2500, 3300))).astype(np.float32)


@pytest.mark.parametrize(
    ("rate_hz", "tolerance"),
    [(8_000, 0.02), (11_025, 2e-3), (22_050, 5e-4), (24_000, 5e-4), (32_000, 5e-4), (44_100, 5e-4), (48_000, 5e-4)],
)
def test_common_rates_equal_torchaudio(rate_hz, tolerance):
    """Its default filter lets more through where it ends: near 4 kHz of 8 kHz."""
    waveform = chord(rate_hz)
    actual, expected = (
        resample(waveform, rate_hz),
        torchaudio.functional.resample(torch.from_numpy(waveform), rate_hz, 16_000),
    )
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual[300:-300], expected.numpy()[300:-300], atol=tolerance)


@pytest.mark.parametrize("rate_hz", [8_001, 11_127, 16_001, 44_101, 47_999, 96_001])
def test_coprime_rates(rate_hz):
    t = np.arange(16_000) / 16_000
    expected = np.sin(2 * np.pi * 440 * t)
    actual = resample(np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32), rate_hz)
    assert len(actual) == 16_000
    np.testing.assert_allclose(actual[400:-400], expected[400:-400], atol=5e-3)


@pytest.mark.parametrize("rate_hz", [16_000, 8_000, 44_100, 44_101])
def test_result_is_independent_of_piece_size(rate_hz):
    waveform = chord(rate_hz)
    resampler = Resampler(rate_hz)
    pieces = [resampler.push(piece) for piece in np.array_split(waveform, 13)]
    joined = np.concatenate([*pieces, resampler.push(np.zeros(0, np.float32), last=True)])
    np.testing.assert_array_equal(joined, resample(waveform, rate_hz))


@pytest.mark.parametrize("n_samples", [1, 2, 7, 160, 12_345])
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 384_000])
def test_length_is_rounded_up(n_samples, rate_hz):
    assert len(resample(np.ones(n_samples, np.float32), rate_hz)) == -(-n_samples * 16_000 // rate_hz)
