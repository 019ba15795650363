"""Augmentation: every draw is a pure function of (seed, epoch, utterance id), so that a resumed run repeats it."""

import hashlib
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import torch
import torchaudio.functional as F
from torchaudio.transforms import Resample

from askd_ray.audio.decode import Waveform
from askd_ray.audio.sounds import recording, sound_files, synthetic_noises, synthetic_room
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ
from askd_ray.config.augment import Augment, Noise, Reverb, SpecAugment

_LINE_HZ, _LINE_LOW_HZ, _LINE_HIGH_HZ, _MU_LAW_LEVELS = 8_000, 300.0, 3_400.0, 256  # ITU-T G.711, G.712


def draw_seed(seed: int, epoch: int, utterance_id: str, purpose: str, copy: int = 0) -> int:
    """Return a 63-bit seed for one random draw of one utterance in one epoch.

    ``copy`` counts from 0 where an epoch holds the utterance more than once.
    """
    name = f"{seed}/{epoch}/{utterance_id}/{purpose}" + (f"/{copy}" if copy else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Draw:
    """Whose random numbers they are; see :func:`draw_seed`."""

    seed: int
    epoch: int
    utterance_id: str
    copy: int = 0

    def seed_of(self, purpose: str) -> int:
        """Return the seed of one draw."""
        return draw_seed(self.seed, self.epoch, self.utterance_id, purpose, self.copy)

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of one draw's numbers."""
        return random.Random(self.seed_of(purpose))


def speed_factor(settings: Augment, draw: Draw, n_samples: int) -> float:
    """Return the factor by which a clip of ``n_samples`` is sped up; 1 where it would become longer than 30 s."""
    if not settings.changes_speed:  # millions of rows are planned
        return 1.0
    factor = draw.rng("speed").choice(settings.speed)
    return factor if sped_up_samples(n_samples, factor) <= PADDED_SAMPLES else 1.0


def sped_up_samples(n_samples: int, factor: float) -> int:
    """Return how many samples are left of ``n_samples`` that are sped up: the length of what torchaudio gives."""
    from_hz, to_hz = _rates(factor)
    return math.ceil(np.float32(to_hz * n_samples / from_hz))  # torchaudio rounds up what it holds in 32 bits


def augment(waveform: Waveform, settings: Augment, draw: Draw) -> Waveform:
    """Return a clip as the student hears it, before the log-mel: mono at 16 kHz, shape ``(n_samples,)``.

    Only the speed changes the number of samples, to :func:`sped_up_samples`. What exceeds 1 is scaled down, not
    clipped. The waveform itself stays as it is.

    Raises :class:`~askd_ray.errors.AskdError` when a noise or a room cannot be read.
    """
    heard = torch.from_numpy(waveform)
    factor = speed_factor(settings, draw, len(waveform))
    if factor != 1.0:
        heard = _sped_up(heard, factor)
    if (rng := draw.rng("reverb")).random() < settings.reverb.share:
        heard = _within_one(_reverberate(heard, settings.reverb, rng))
    if (rng := draw.rng("noise")).random() < settings.noise.share:
        heard = _within_one(_add_noise(heard, settings.noise, rng))
    if draw.rng("telephone").random() < settings.telephone.share:
        heard = _telephone(heard)
    gain_db = draw.rng("gain").uniform(*settings.gain_db)
    if gain_db != 0.0:
        heard = _within_one(heard * 10.0 ** (gain_db / 20.0))
    return heard.numpy()


def spec_augment(log_mel: torch.Tensor, settings: SpecAugment, seed: int) -> torch.Tensor:
    """Return a clip's log-mel ``(n_mels, n_frames)`` with bands and stretches set to its mean (arXiv 1904.08779)."""
    n_mels, n_frames = log_mel.shape
    masked, mean = log_mel.clone(), float(log_mel.mean())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.freq_masks):
        masked[_mask(n_mels, settings.freq_width, generator)] = mean
    for _ in range(settings.time_masks):
        masked[:, _mask(n_frames, int(settings.time_share * n_frames), generator)] = mean
    return masked


def _mask(size: int, most: int, generator: torch.Generator) -> slice:
    """Draw a stretch as torchaudio's mask_along_axis does, which takes the process's own generator instead."""
    if most < 1:
        return slice(0, 0)
    width = torch.rand(1, generator=generator) * most
    start = int(torch.rand(1, generator=generator) * (size - width))
    return slice(start, start + int(width))


def _rates(factor: float) -> tuple[int, int]:
    """Return the rates between which resampling speeds a clip up by a factor, which has at most two decimals."""
    return round(100 * factor), 100


def _sped_up(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Return what torchaudio's Resample gives, whose convolution takes twice as long as this product."""
    from_hz, to_hz = _rates(factor)
    resampler, step = _resampler(from_hz, to_hz), from_hz // math.gcd(from_hz, to_hz)
    n_after = sped_up_samples(len(clip), factor)
    kernels = cast(torch.Tensor, resampler.kernel)[:, 0]
    padded = torch.nn.functional.pad(clip, (resampler.width, resampler.width + step))
    return (padded.unfold(0, kernels.shape[1], step) @ kernels.T).reshape(-1)[:n_after]


@lru_cache(maxsize=16)
def _resampler(from_hz: int, to_hz: int) -> Resample:
    return Resample(from_hz, to_hz)  # it holds its kernel


@lru_cache(maxsize=2)
def _steep_resampler(from_hz: int, to_hz: int) -> Resample:
    # With the default filter the band above 4 kHz would hold a mirror image of that below, 27 dB under it.
    return Resample(from_hz, to_hz, lowpass_filter_width=16, rolloff=0.95)


def _reverberate(clean: torch.Tensor, settings: Reverb, rng: random.Random) -> torch.Tensor:
    """Return a clip as it sounds in a room, no later and as loud as it was."""
    if settings.files is None:
        rt60_s = rng.uniform(*settings.rt60_s)
        room = synthetic_room(rt60_s, torch.Generator().manual_seed(rng.getrandbits(63)))
    else:
        room = recording(rng.choice(sound_files(settings.files)))
        room = room[int(room.abs().argmax()) :]  # what is before the direct sound would only delay the clip
    wet = _convolve(clean, room[: len(clean)])
    energy = _energy(wet)
    return wet * (_energy(clean) / energy).sqrt() if energy > 0.0 else clean


def _convolve(clip: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Return the first ``len(clip)`` samples of a convolution, by overlap-save.

    One transform of the whole clip, as torchaudio's fftconvolve takes it, is slower: several times where its length
    has a large prime factor.
    """
    n_before = len(response) - 1
    n_fft = max(1 << (2 * n_before).bit_length(), 4_096)
    step = n_fft - n_before
    padded = torch.nn.functional.pad(clip, (n_before, -len(clip) % step))
    spectra = torch.fft.rfft(padded.unfold(0, n_fft, step)) * torch.fft.rfft(response, n=n_fft)
    return torch.fft.irfft(spectra, n=n_fft)[:, n_before:].reshape(-1)[: len(clip)]


def _add_noise(clean: torch.Tensor, settings: Noise, rng: random.Random) -> torch.Tensor:
    """Return a clip with a stretch of noise behind it; with none where the stretch is silent."""
    if settings.files is None:
        noise = rng.choice(synthetic_noises())
    else:
        noise = recording(rng.choice(sound_files(settings.files)))
    n_samples = len(clean)
    if len(noise) < n_samples:
        noise = noise.repeat(n_samples // len(noise) + 2)
    start = rng.randrange(len(noise) - n_samples + 1)
    noise = noise[start : start + n_samples]
    snr_db = torch.tensor(rng.uniform(*settings.snr_db))
    return F.add_noise(clean, noise, snr_db) if _energy(noise) > 0.0 else clean


def _telephone(clean: torch.Tensor) -> torch.Tensor:
    """Return a clip as it comes out of a telephone line."""
    narrow = _steep_resampler(SAMPLE_RATE_HZ, _LINE_HZ)(clean)
    narrow = F.lowpass_biquad(F.highpass_biquad(narrow, _LINE_HZ, _LINE_LOW_HZ), _LINE_HZ, _LINE_HIGH_HZ)
    coded = F.mu_law_decoding(F.mu_law_encoding(narrow, _MU_LAW_LEVELS), _MU_LAW_LEVELS)
    return _steep_resampler(_LINE_HZ, SAMPLE_RATE_HZ)(coded)[: len(clean)]


def _energy(waveform: torch.Tensor) -> torch.Tensor:
    return torch.dot(waveform, waveform)


def _within_one(waveform: torch.Tensor) -> torch.Tensor:
    low, high = waveform.aminmax()
    peak = torch.maximum(-low, high)
    return waveform / peak if peak > 1.0 else waveform
