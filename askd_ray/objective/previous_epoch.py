"""The self-teacher ``previous_epoch``: the student's distributions of one epoch are soft labels in the next.

PS-KD, arXiv 2006.12000; here with the top k, in files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from askd_ray.config.self_teacher import PreviousEpochConfig
from askd_ray.divergence.buckets import to_buckets
from askd_ray.objective.label_parts import CachedLabels, LabelParts, exchange_parts, remove_parts, write_part
from askd_ray.objective.references import Reference, TopK
from askd_ray.objective.schedules import Progress
from askd_ray.objective.tensors import TensorBatch
from askd_ray.objective.transfer import send

_Piece = tuple[torch.Tensor, torch.Tensor]
"""Ids and buckets of a part of a batch, as in :class:`~askd_ray.objective.label_parts.CachedLabels`."""


class PreviousEpoch:
    """Caches the student's distributions during an epoch, and uses them as labels in the next epoch.

    Each target token takes 6 bytes per kept token. Every rank needs the labels of all utterances, because the next
    epoch assigns utterances to other ranks: they are files in ``folder``, which ranks map into memory. Each rank writes
    what it observed at the end of an epoch and for a checkpoint, which names the files that belong to it.
    """

    def __init__(self, settings: PreviousEpochConfig, folder: Path):
        self.settings = settings
        self._folder = folder
        self._epoch = 0
        self._n_exchanges = 0  # in this epoch
        self._recording = False
        self._cleared = False
        self._previous, self._current = LabelParts(folder), LabelParts(folder)
        self._local_labels: dict[str, CachedLabels] = {}  # of this rank, not yet exchanged
        self._pieces: list[_Piece] = []
        self._observed: list[tuple[tuple[str, ...], tuple[int, ...], list[_Piece]]] = []  # of this step: ids, lengths

    def before_step(self, student: object, progress: Progress) -> None:
        """At the start of an epoch, turn the labels of the last epoch into the reference."""
        if not self._cleared:  # what a killed process wrote after its last checkpoint
            self.after_checkpoint()
            self._cleared = True
        self._split()
        if progress.epoch > self._epoch:
            self._exchange()
            self._previous, self._current = self._current, LabelParts(self._folder)
            self._epoch, self._n_exchanges = progress.epoch, 0
        used_next = progress.epoch + 1 < progress.n_epochs
        after_switch = (progress.epoch + 2) / progress.n_epochs > self.settings.switch
        self._recording = self.settings.weight > 0.0 and used_next and after_switch

    @torch.autocast("cpu", enabled=False)  # bfloat16 autocast cannot concatenate float16 tensors
    def references(self, batch: TensorBatch, readings: Sequence[object]) -> Sequence[Reference | None]:
        """Return the labels of a batch's target tokens; None in the first epoch. The only reading is the decoder's."""
        if not self._previous.names:
            return [None]
        cached = self._previous.find(batch.ids)
        device, k = batch.targets.device, self.settings.top_k
        ids = send(torch.cat([s.ids for s in cached] or [torch.zeros(0, k, dtype=torch.int32)]), device).long()
        buckets = send(torch.cat([s.buckets for s in cached] or [torch.zeros(0, k + 1)]), device).float()
        return [TopK(ids, buckets[:, :-1], buckets[:, -1], buckets.new_zeros(len(buckets)))]

    @torch.autocast("cpu", enabled=False)
    @torch.no_grad()
    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """Keep the top k of a part of the batch."""
        if not self._recording:
            return
        ids = log_q.topk(self.settings.top_k, dim=-1).indices
        # The host does not wait for these copies. It reads them before the next step: this step is over then.
        piece = tuple(t.to("cpu", non_blocking=True) for t in (ids.int(), to_buckets(log_q, ids).half()))
        self._pieces.append((piece[0], piece[1]))
        if rows.stop >= sum(batch.lengths):
            self._observed.append((batch.ids, batch.lengths, self._pieces))
            self._pieces = []

    @torch.autocast("cpu", enabled=False)
    def _split(self) -> None:
        """Split the labels of the last step by utterance."""
        for utterances, lengths, pieces in self._observed:
            ids, buckets = (torch.cat(parts).split(lengths) for parts in zip(*pieces, strict=True))
            for utterance, i, b in zip(utterances, ids, buckets, strict=False):  # an empty batch has an unnamed row
                self._local_labels[utterance] = CachedLabels(i.clone(), b.clone())
        self._observed = []

    def after_evaluation(self, student: object, better: bool) -> None:
        """Do nothing: this self-teacher does not depend on dev scores."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the names of the files, and the epoch."""
        self._exchange()
        facts = {"epoch": self._epoch, "exchanges": self._n_exchanges}
        return {}, {**facts, "previous": self._previous.names, "current": self._current.names}

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any], student_builder: object) -> None:
        """Restore what :meth:`state` returned."""
        self._epoch, self._n_exchanges = facts["epoch"], facts["exchanges"]
        self._previous.open(facts["previous"])
        self._current.open(facts["current"])

    def after_checkpoint(self) -> None:
        """Delete the files that the newest checkpoint does not name."""
        remove_parts(self._folder, [*self._previous.names, *self._current.names])

    def _exchange(self) -> None:
        """Write what this rank observed, and map what all ranks wrote."""
        self._split()
        name = None
        if self._local_labels:
            rank = dist.get_rank() if dist.is_initialized() else 0
            name = f"epoch-{self._epoch:04d}-part-{self._n_exchanges:05d}-rank-{rank:04d}.safetensors"
            write_part(self._folder / name, self._local_labels)
        self._local_labels = {}
        self._current.open(exchange_parts(self._folder, name))
        self._n_exchanges += 1
