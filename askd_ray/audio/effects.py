"""Audio effects: speed, reverberation, noise, telephone line, clipped peaks. Callers draw the random parameters.

Clips are mono at 16 kHz, shape ``(n_samples,)``; no function modifies its input.
"""

import math
from functools import lru_cache
from random import Random
from typing import cast

import numpy as np
import torch
import torchaudio.functional as F
from numpy.typing import NDArray
from torchaudio.transforms import Resample

from askd_ray.audio.units import SAMPLE_RATE_HZ

_LINE_HZ, _LINE_LOW_HZ, _LINE_HIGH_HZ, _MU_LAW_LEVELS = 8_000, 300.0, 3_400.0, 256  # ITU-T G.711, G.712


def sped_up_samples(n_samples: NDArray[np.int64] | int, factors: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Return the lengths of clips of ``n_samples`` after :func:`sped_up`: the lengths that torchaudio gives."""
    from_hz, to_hz = _rates(factors)
    return np.ceil((to_hz * np.asarray(n_samples) / from_hz).astype(np.float32)).astype(
        np.int64
    )  # torchaudio rounds up a float32


def sped_up(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Return a clip with speed and pitch multiplied by a factor of whole hundredths: :func:`sped_up_samples` long.

    The result is that of torchaudio's Resample, whose convolution takes twice as long as this matrix product.
    """
    from_hz, to_hz = int(_rates(factor)[0]), _rates(factor)[1]
    if from_hz == to_hz:
        return clip
    resampler, step = _resampler(from_hz, to_hz), from_hz // math.gcd(from_hz, to_hz)
    n_after = int(sped_up_samples(len(clip), factor))
    kernels = cast(torch.Tensor, resampler.kernel)[:, 0]
    padded = torch.nn.functional.pad(clip, (resampler.width, resampler.width + step))
    return (padded.unfold(0, kernels.shape[1], step) @ kernels.T).reshape(-1)[:n_after]


def reverberate(clean: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Convolve a clip with a room's impulse response that begins with the direct sound: no delay, the same energy."""
    wet = _convolve(clean, room[: len(clean)])
    energy = _energy(wet)
    return wet * (_energy(clean) / energy).sqrt() if energy > 0.0 else clean


def add_noise(clean: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """Add noise of the clip's length at ``snr_db`` over the whole clip; silent noise adds nothing.

    The sum may exceed 1; see :func:`within_one`.
    """
    return F.add_noise(clean, noise, torch.tensor(snr_db)) if _energy(noise) > 0.0 else clean


def fit_length(sound: torch.Tensor, n_samples: int, rng: Random) -> torch.Tensor:
    """Return ``n_samples`` of a sound from a random start; a shorter sound is repeated."""
    if len(sound) < n_samples:
        sound = sound.repeat(n_samples // len(sound) + 2)
    start = rng.randrange(len(sound) - n_samples + 1)
    return sound[start : start + n_samples]


def telephone(clean: torch.Tensor) -> torch.Tensor:
    """Return a clip after a telephone line: 300 to 3400 Hz, mu-law with 8 bits at 8 kHz."""
    narrow = _steep_resampler(SAMPLE_RATE_HZ, _LINE_HZ)(clean)
    narrow = F.lowpass_biquad(F.highpass_biquad(narrow, _LINE_HZ, _LINE_LOW_HZ), _LINE_HZ, _LINE_HIGH_HZ)
    coded = F.mu_law_decoding(F.mu_law_encoding(narrow, _MU_LAW_LEVELS), _MU_LAW_LEVELS)
    return _steep_resampler(_LINE_HZ, SAMPLE_RATE_HZ)(coded)[: len(clean)]


def cut_peaks(clean: torch.Tensor, below_db: float) -> torch.Tensor:
    """Clip a waveform, as an overdriven recorder does, at ``below_db`` below its highest peak."""
    limit = float(clean.abs().max()) * 10.0 ** (-below_db / 20.0)
    return clean.clamp(-limit, limit)


def within_one(clip: torch.Tensor) -> torch.Tensor:
    """Return a clip scaled down to a peak of 1 where it exceeds that."""
    low, high = clip.aminmax()
    peak = torch.maximum(-low, high)
    return clip / peak if peak > 1.0 else clip


def _rates(factors: NDArray[np.float64] | float) -> tuple[NDArray[np.int64], int]:
    """Return the rates between which resampling speeds clips up by factors, which have at most two decimals."""
    return np.rint(100 * np.asarray(factors)).astype(np.int64), 100


@lru_cache(maxsize=16)
def _resampler(from_hz: int, to_hz: int) -> Resample:
    return Resample(from_hz, to_hz)  # cached, since it holds its kernel


@lru_cache(maxsize=2)
def _steep_resampler(from_hz: int, to_hz: int) -> Resample:
    # With the default filter, aliasing from below 4 kHz would appear above 4 kHz, only 27 dB weaker.
    return Resample(from_hz, to_hz, lowpass_filter_width=16, rolloff=0.95)


def _convolve(clip: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Return the first ``len(clip)`` samples of a convolution, by overlap-save.

    torchaudio's fftconvolve transforms the whole clip at once, which is slower: several times where the length has a
    large prime factor.
    """
    n_before = len(response) - 1
    n_fft = max(1 << (2 * n_before).bit_length(), 4_096)
    step = n_fft - n_before
    padded = torch.nn.functional.pad(clip, (n_before, -len(clip) % step))
    spectra = torch.fft.rfft(padded.unfold(0, n_fft, step)) * torch.fft.rfft(response, n=n_fft)
    return torch.fft.irfft(spectra, n=n_fft)[:, n_before:].reshape(-1)[: len(clip)]


def _energy(waveform: torch.Tensor) -> torch.Tensor:
    return torch.dot(waveform, waveform)
