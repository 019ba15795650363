"""Augmentation: every draw is a pure function of (seed, epoch, utterance id), so that a resumed run repeats it."""

import hashlib
import random

import torch

from askd_ray.config.schema import SpecAugment


def draw_seed(seed: int, epoch: int, utterance_id: str, purpose: str) -> int:
    """Return a 63-bit seed for one random draw of one utterance in one epoch."""
    name = f"{seed}/{epoch}/{utterance_id}/{purpose}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def spec_augment(log_mel: torch.Tensor, settings: SpecAugment, seed: int) -> torch.Tensor:
    """Return a clip's log-mel ``(n_mels, n_frames)`` with bands and stretches set to its mean (arXiv 1904.08779).

    Masks are as wide as ``torchaudio.functional.mask_along_axis`` makes them; its draws come from the global random
    number generator, which a thread that makes batches must leave alone.
    """
    masked, mean, rng = log_mel.clone(), float(log_mel.mean()), random.Random(seed)
    n_mels, n_frames = log_mel.shape
    for _ in range(settings.freq_masks):
        masked[_stretch(rng, settings.freq_width, n_mels)] = mean
    for _ in range(settings.time_masks):
        masked[:, _stretch(rng, int(settings.time_share * n_frames), n_frames)] = mean
    return masked


def _stretch(rng: random.Random, most: int, length: int) -> slice:
    width = rng.uniform(0, most)
    start = rng.uniform(0, max(0.0, length - width))
    return slice(int(start), int(start) + int(width))
