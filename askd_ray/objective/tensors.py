"""A batch as tensors on a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.data.schema import IGNORED, Batch


@dataclass(frozen=True)
class TensorBatch:
    """The arrays of a :class:`~askd_ray.data.schema.Batch` as tensors on a device; the shapes are documented there.

    ``window_frames`` is None if all windows have the length of the log-mel: then attention needs no mask.
    """

    ids: tuple[str, ...]
    log_mel: torch.Tensor
    window_frames: torch.Tensor | None
    decoder_ids: torch.Tensor
    targets: torch.Tensor
    top_ids: torch.Tensor
    top_log_probs: torch.Tensor
    rest_log_prob: torch.Tensor
    token_loss: torch.Tensor
    states: torch.Tensor
    has_teacher: torch.Tensor
    teacher_log_mel: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "TensorBatch":
        """Move a batch to a device."""

        def moved(array: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        described = ("ids", "numbers")
        tensors: dict[str, Any] = {name: moved(value) for name, value in vars(batch).items() if name not in described}
        if (batch.window_frames == batch.log_mel.shape[2]).all():
            tensors["window_frames"] = None
        return cls(ids=batch.ids, **tensors)

    @cached_property
    def valid(self) -> torch.Tensor:
        """The mask of the target tokens, ``(batch, length)``; indexing with it gives the target tokens by utterance."""
        return self.targets != IGNORED

    @property
    def lengths(self) -> torch.Tensor:
        """The number of target tokens of each utterance, ``(batch,)``."""
        return self.valid.sum(dim=1)

    @property
    def teacher_loss(self) -> torch.Tensor:
        """The teacher's mean cross-entropy on each utterance, ``(batch,)``, in nats a token."""
        return (self.token_loss * self.valid).sum(dim=1) / self.lengths.clamp_min(1)

    def at_targets(self, states: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return states of layers ``(batch, length, d_model)`` at the target tokens: ``(n_tokens, d_model)``."""
        return {layer: of_layer[self.valid] for layer, of_layer in states.items()}

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat values of utterances ``(batch,)`` for their target tokens ``(n_tokens,)``."""
        return values[:, None].expand_as(self.valid)[self.valid]
