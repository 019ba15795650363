"""A batch as tensors on a device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from askd_ray.audio.batch_logmel import apply_masks, batch_log_mel
from askd_ray.audio.units import PADDED_FRAMES
from askd_ray.data.schema import Batch
from askd_ray.objective.transfer import Tensors, on_device

_OF_AUDIO = ("waveforms", "frame_counts", "masks", "teacher_waveforms", "teacher_frame_counts")


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
        """Return a batch on a device."""
        return next(cls.each([batch], device))

    @classmethod
    def each(cls, batches: Sequence[Batch], device: torch.device) -> Iterator["TensorBatch"]:
        """Yield batches on a device, with their log-mels; see :func:`~askd_ray.objective.transfer.on_device`."""
        for batch, tensors in zip(batches, on_device(batches, device), strict=True):
            log_mels = {"log_mel": _log_mel(batch, tensors), "teacher_log_mel": _teacher_log_mel(batch, tensors)}
            others: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name not in _OF_AUDIO}
            if (batch.window_frames == batch.n_frames).all():
                others["window_frames"] = None
            yield cls(ids=batch.ids, lengths=tuple(batch.n_targets.tolist()), **others | log_mels)

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


def _log_mel(batch: Batch, tensors: Tensors) -> torch.Tensor:
    if batch.log_mel.shape[2]:
        return tensors["log_mel"]
    counts, sizes = tensors["frame_counts"], (batch.log_mel.shape[1], batch.n_frames)
    log_mel = batch_log_mel(tensors["waveforms"], counts, int(batch.frame_counts[:, 0].max()), *sizes)
    return apply_masks(log_mel, counts, tensors["masks"]) if batch.masks.size else log_mel


def _teacher_log_mel(batch: Batch, tensors: Tensors) -> torch.Tensor:
    _, n_mels, n_frames = batch.teacher_log_mel.shape
    if n_frames or not n_mels:
        return tensors["teacher_log_mel"]
    waveforms = tensors["teacher_waveforms" if batch.teacher_waveforms.size else "waveforms"]
    n_computed = int(batch.teacher_frame_counts[:, 0].max())
    return batch_log_mel(waveforms, tensors["teacher_frame_counts"], n_computed, n_mels, PADDED_FRAMES)
