"""The self-teacher ``previous_epoch``: the student's distributions of one epoch are soft labels in the next.

PS-KD, arXiv 2006.12000; here with a top-k cache in memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from askd_ray.config.self_teacher import PreviousEpochConfig
from askd_ray.divergence.buckets import to_buckets
from askd_ray.objective.references import Reference, TopK
from askd_ray.objective.schedules import Progress
from askd_ray.objective.tensors import TensorBatch
from askd_ray.objective.transfer import send


@dataclass(frozen=True)
class _CachedLabels:
    """The labels of one utterance: ``ids`` int32 (n_tokens, k), and ``buckets`` float16 (n_tokens, k + 1).

    The last bucket is the rest.
    """

    ids: torch.Tensor
    buckets: torch.Tensor


_Piece = tuple[torch.Tensor, torch.Tensor]
"""Ids and buckets of a part of a batch, as in :class:`_CachedLabels`."""


class PreviousEpoch:
    """Caches the student's distributions during an epoch, and uses them as labels in the next epoch.

    Each target token takes 6 bytes per kept token. Every rank holds the labels of all utterances, because the next
    epoch assigns utterances to other ranks. The ranks exchange labels at the end of an epoch and for a checkpoint.
    """

    def __init__(self, settings: PreviousEpochConfig):
        self.settings = settings
        self._epoch = 0
        self._recording = False
        self._previous_labels: dict[str, _CachedLabels] = {}
        self._current_labels: dict[str, _CachedLabels] = {}
        self._local_labels: dict[str, _CachedLabels] = {}  # of this rank, not yet exchanged
        self._pieces: list[_Piece] = []
        self._observed: list[tuple[tuple[str, ...], tuple[int, ...], list[_Piece]]] = []  # of this step: ids, lengths

    def before_step(self, student: object, progress: Progress) -> None:
        """At the start of an epoch, turn the labels of the last epoch into the reference."""
        self._split()
        if progress.epoch > self._epoch:
            self._exchange()
            self._previous_labels, self._current_labels, self._epoch = self._current_labels, {}, progress.epoch
        used_next = progress.epoch + 1 < progress.n_epochs
        after_switch = (progress.epoch + 2) / progress.n_epochs > self.settings.switch
        self._recording = self.settings.weight > 0.0 and used_next and after_switch

    @torch.autocast("cpu", enabled=False)  # bfloat16 autocast cannot concatenate float16 tensors
    def reference(self, batch: TensorBatch) -> Reference | None:
        """Return the labels of a batch's target tokens; None in the first epoch."""
        if not self._previous_labels:
            return None
        cached = [self._previous_labels[i] for i in batch.ids]
        device, k = batch.targets.device, self.settings.top_k
        ids = send(torch.cat([s.ids for s in cached] or [torch.zeros(0, k, dtype=torch.int32)]), device).long()
        buckets = send(torch.cat([s.buckets for s in cached] or [torch.zeros(0, k + 1)]), device).float()
        return TopK(ids, buckets[:, :-1], buckets[:, -1], buckets.new_zeros(len(buckets)))

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
                self._local_labels[utterance] = _CachedLabels(i.clone(), b.clone())
        self._observed = []

    def after_evaluation(self, student: object, better: bool) -> None:
        """Do nothing: this self-teacher does not depend on dev scores."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return both caches and the epoch."""
        self._exchange()
        tensors: dict[str, torch.Tensor] = {}
        for name, cache in (("before", self._previous_labels), ("now", self._current_labels)):
            if cache:
                tensors[f"{name}.ids"] = torch.cat([s.ids for s in cache.values()])
                tensors[f"{name}.buckets"] = torch.cat([s.buckets for s in cache.values()])
                tensors[f"{name}.lengths"] = torch.tensor([len(s.ids) for s in cache.values()])
        return tensors, {"epoch": self._epoch, "before": list(self._previous_labels), "now": list(self._current_labels)}

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any], student_builder: object) -> None:
        """Restore what :meth:`state` returned."""
        self._epoch = facts["epoch"]
        self._previous_labels = _unpacked(tensors, facts["before"], "before")
        self._current_labels = _unpacked(tensors, facts["now"], "now")

    def _exchange(self) -> None:
        self._split()
        shares: list[dict[str, _CachedLabels]] = [self._local_labels]
        if dist.is_initialized() and dist.get_world_size() > 1:
            shares = [{}] * dist.get_world_size()
            dist.all_gather_object(shares, self._local_labels)
        for share in shares:
            self._current_labels |= share
        self._local_labels = {}


def _unpacked(tensors: dict[str, torch.Tensor], utterances: list[str], name: str) -> dict[str, _CachedLabels]:
    if not utterances:
        return {}
    lengths = tensors[f"{name}.lengths"].tolist()
    ids, buckets = (tensors[f"{name}.{part}"].split(lengths) for part in ("ids", "buckets"))
    return {u: _CachedLabels(i.clone(), b.clone()) for u, i, b in zip(utterances, ids, buckets, strict=True)}
