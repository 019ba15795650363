"""Augmentation: every draw is a pure function of (seed, epoch, utterance id), so that a resumed run repeats it."""

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import add_noise, fit_length, reverberate, sped_up, sped_up_samples, telephone, within_one
from askd_ray.audio.sounds import draw_noise, draw_room
from askd_ray.audio.units import PADDED_SAMPLES
from askd_ray.config.augment import Augment, SpecAugment
from askd_ray.randomness import Draw


def speed_factors(settings: Augment, draws: NDArray[np.float64], n_samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the speed factors of clips of ``n_samples`` for numbers in [0, 1); 1 where a clip would exceed 30 s."""
    speeds = np.asarray(settings.speed, np.float64)
    factors = speeds[(draws * len(speeds)).astype(np.int64)]
    return np.where(sped_up_samples(n_samples, factors) <= PADDED_SAMPLES, factors, 1.0)


def speed_factor(settings: Augment, draw: Draw, n_samples: int) -> float:
    """Draw the speed factor of a clip of ``n_samples``: that of :func:`speed_factors`."""
    if not settings.changes_speed:
        return 1.0
    return float(speed_factors(settings, np.array([draw.uniform("speed")]), np.array([n_samples]))[0])


def augment(waveform: Waveform, settings: Augment, draw: Draw) -> Waveform:
    """Return the augmented clip, the student's input before the log-mel: mono at 16 kHz, shape ``(n_samples,)``.

    Only the speed changes the number of samples, to :func:`~askd_ray.audio.effects.sped_up_samples`. A clip whose peak
    exceeds 1 is scaled down, not clipped. ``waveform`` is not modified.

    Raises :class:`~askd_ray.errors.AskdError` when a noise or a room cannot be read.
    """
    clip = sped_up(torch.from_numpy(waveform), speed_factor(settings, draw, len(waveform)))
    if (rng := draw.rng("reverb")).random() < settings.reverb.share:
        clip = within_one(reverberate(clip, draw_room(settings.reverb.files, settings.reverb.rt60_s, rng)))
    if (rng := draw.rng("noise")).random() < settings.noise.share:
        noise = fit_length(draw_noise(settings.noise.files, rng), len(clip), rng)
        clip = within_one(add_noise(clip, noise, rng.uniform(*settings.noise.snr_db)))
    if draw.rng("telephone").random() < settings.telephone.share:
        clip = telephone(clip)
    gain_db = draw.rng("gain").uniform(*settings.gain_db)
    if gain_db != 0.0:
        clip = within_one(clip * 10.0 ** (gain_db / 20.0))
    return clip.numpy()


def spec_augment(log_mel: torch.Tensor, settings: SpecAugment, seed: int) -> torch.Tensor:
    """Return a clip's log-mel ``(n_mels, n_frames)`` with masked bands and spans set to its mean (arXiv 1904.08779)."""
    n_mels, n_frames = log_mel.shape
    masked, mean = log_mel.clone(), float(log_mel.mean())
    for mel, mel_end, frame, frame_end in draw_masks(n_mels, n_frames, settings, seed):
        masked[mel:mel_end, frame:frame_end] = mean
    return masked


def draw_masks(n_mels: int, n_frames: int, settings: SpecAugment, seed: int) -> list[tuple[int, int, int, int]]:
    """Return the masks of a clip as rectangles: first mel bin and end, first frame and end."""
    generator, width = torch.Generator().manual_seed(seed), int(settings.time_share * n_frames)
    bands = [_mask(n_mels, settings.freq_width, generator) for _ in range(settings.freq_masks)]
    spans = [_mask(n_frames, width, generator) for _ in range(settings.time_masks)]
    return [(*band, 0, n_frames) for band in bands] + [(0, n_mels, *span) for span in spans]


def _mask(size: int, max_width: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw a span as torchaudio's mask_along_axis does; that function uses the global generator, this one does not."""
    if max_width < 1:
        return 0, 0
    width = torch.rand(1, generator=generator) * max_width
    start = int(torch.rand(1, generator=generator) * (size - width))
    return start, start + int(width)
