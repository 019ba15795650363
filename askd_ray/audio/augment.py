"""Augmentation: every draw is a pure function of (seed, epoch, utterance id), so that a resumed run repeats it."""

import hashlib

import torch
from torchaudio.functional import mask_along_axis

from askd_ray.config.schema import SpecAugment


def draw_seed(seed: int, epoch: int, utterance_id: str, purpose: str) -> int:
    """Return a 63-bit seed for one random draw of one utterance in one epoch."""
    name = f"{seed}/{epoch}/{utterance_id}/{purpose}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def spec_augment(log_mel: torch.Tensor, settings: SpecAugment, seed: int) -> torch.Tensor:
    """Return a clip's log-mel ``(n_mels, n_frames)`` with bands and stretches set to its mean (arXiv 1904.08779)."""
    masked, mean = log_mel[None], float(log_mel.mean())
    with torch.random.fork_rng(devices=[]):  # torchaudio draws from the global generator
        torch.manual_seed(seed)
        for _ in range(settings.freq_masks):
            masked = mask_along_axis(masked, settings.freq_width, mean, axis=1)
        for _ in range(settings.time_masks):
            masked = mask_along_axis(masked, int(settings.time_share * log_mel.shape[1]), mean, axis=2)
    return masked[0]
