"""A batch as tensors on a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.data.schema import Batch


@dataclass(frozen=True)
class TensorBatch:
    """The arrays of a :class:`~askd_ray.data.schema.Batch` as tensors on a device; the shapes are documented there.

    ``lengths`` are the numbers of target tokens of the utterances, known on the host. ``window_frames`` is None if all
    windows have the length of the log-mel: then attention needs no mask.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    log_mel: torch.Tensor
    window_frames: torch.Tensor | None
    decoder_ids: torch.Tensor
    n_targets: torch.Tensor
    has_teacher: torch.Tensor
    teacher_loss: torch.Tensor
    teacher_log_mel: torch.Tensor
    targets: torch.Tensor
    target_positions: torch.Tensor
    rows: torch.Tensor
    top_ids: torch.Tensor
    top_log_probs: torch.Tensor
    rest_log_prob: torch.Tensor
    token_loss: torch.Tensor
    states: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "TensorBatch":
        """Move a batch to a device."""

        def moved(array: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        tensors: dict[str, Any] = {name: moved(value) for name, value in vars(batch).items() if name != "ids"}
        if (batch.window_frames == batch.log_mel.shape[2]).all():
            tensors["window_frames"] = None
        return cls(ids=batch.ids, lengths=tuple(batch.n_targets.tolist()), **tensors)

    def at_targets(self, states: torch.Tensor) -> torch.Tensor:
        """Return states ``(batch, length, d_model)`` at the target tokens: ``(n_tokens, d_model)``."""
        # Not a boolean mask: the host would have to wait for the number of tokens.
        return states.flatten(0, 1).index_select(0, self.target_positions)

    def states_at_targets(self, states: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return states of layers, each as :meth:`at_targets` does."""
        return {layer: self.at_targets(of_layer) for layer, of_layer in states.items()}

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat values of utterances ``(batch,)`` for their target tokens ``(n_tokens,)``."""
        return values.index_select(0, self.rows)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device; the host does not wait for the copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
