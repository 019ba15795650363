"""What the student said an epoch ago as its own soft labels (PS-KD, arXiv 2006.12000), a top-k cache in memory."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from askd_ray.config.objective import SelfTeacherConfig as Settings
from askd_ray.distill.references import Reference, TopK
from askd_ray.distill.schedules import Progress
from askd_ray.distill.tensors import TensorBatch
from askd_ray.targets.buckets import to_buckets


@dataclass(frozen=True)
class _Said:
    """What was said of one utterance: ``ids`` int32 and ``buckets`` float16 (n_tokens, k + 1: the rest is the last)."""

    ids: torch.Tensor
    buckets: torch.Tensor


class PreviousEpoch:
    """Writes down what the student says as an epoch goes by, and teaches it in the next.

    An utterance takes 6 bytes a token and kept token. Every rank holds all of them, since the next epoch deals
    them out anew: they are exchanged at the end of an epoch and for a checkpoint.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self._epoch = 0
        self._recording = False
        self._before: dict[str, _Said] = {}
        self._now: dict[str, _Said] = {}
        self._fresh: dict[str, _Said] = {}  # of this rank, and not yet exchanged
        self._pieces: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before_step(self, student: object, progress: Progress) -> None:
        """At the start of an epoch, what was written down becomes what teaches."""
        if progress.epoch > self._epoch:
            self._exchange()
            self._before, self._now, self._epoch = self._now, {}, progress.epoch
        used_next = progress.epoch + 1 < progress.n_epochs
        after_switch = (progress.epoch + 2) / progress.n_epochs > self.settings.switch
        self._recording = self.settings.weight > 0.0 and used_next and after_switch

    @torch.autocast("cpu", enabled=False)  # bfloat16's would not put float16 tensors together
    def reference(self, batch: TensorBatch) -> Reference | None:
        """Return the labels of a batch's target tokens; None in the first epoch."""
        if not self._before:
            return None
        said = [self._before[i] for i in batch.ids]
        device, k = batch.targets.device, self.settings.top_k
        ids = torch.cat([s.ids for s in said] or [torch.zeros(0, k, dtype=torch.int32)]).to(device).long()
        buckets = torch.cat([s.buckets for s in said] or [torch.zeros(0, k + 1)]).to(device).float()
        return TopK(ids, buckets[:, :-1], buckets[:, -1], buckets.new_zeros(len(buckets)))

    @torch.autocast("cpu", enabled=False)
    @torch.no_grad()
    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """Keep the top k of a piece of the batch; with its last piece, sort them by utterance."""
        if not self._recording:
            return
        ids = log_q.topk(self.settings.top_k, dim=-1).indices
        self._pieces.append((ids.int().cpu(), to_buckets(log_q, ids).half().cpu()))
        lengths = batch.lengths.tolist()
        if rows.stop < sum(lengths):
            return
        all_ids, all_buckets = (torch.cat(pieces) for pieces in zip(*self._pieces, strict=True))
        self._pieces = []
        at = 0
        for utterance, length in zip(batch.ids, lengths, strict=False):  # an empty batch has a row without a name
            self._fresh[utterance] = _Said(all_ids[at : at + length].clone(), all_buckets[at : at + length].clone())
            at += length

    def after_evaluation(self, student: object, better: bool) -> None:
        """Dev does not matter here."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return both caches and the epoch."""
        self._exchange()
        tensors: dict[str, torch.Tensor] = {}
        for name, cache in (("before", self._before), ("now", self._now)):
            if cache:
                tensors[f"{name}.ids"] = torch.cat([s.ids for s in cache.values()])
                tensors[f"{name}.buckets"] = torch.cat([s.buckets for s in cache.values()])
                tensors[f"{name}.lengths"] = torch.tensor([len(s.ids) for s in cache.values()])
        return tensors, {"epoch": self._epoch, "before": list(self._before), "now": list(self._now)}

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any], student_at: object) -> None:
        """Put back what :meth:`state` gave."""
        self._epoch = facts["epoch"]
        self._before, self._now = (_unpacked(tensors, facts[name], name) for name in ("before", "now"))

    def _exchange(self) -> None:
        shares: list[dict[str, _Said]] = [self._fresh]
        if dist.is_initialized() and dist.get_world_size() > 1:
            shares = [{}] * dist.get_world_size()
            dist.all_gather_object(shares, self._fresh)
        for share in shares:
            self._now |= share
        self._fresh = {}


def _unpacked(tensors: dict[str, torch.Tensor], utterances: list[str], name: str) -> dict[str, _Said]:
    if not utterances:
        return {}
    lengths = tensors[f"{name}.lengths"].tolist()
    ids, buckets = (tensors[f"{name}.{part}"].split(lengths) for part in ("ids", "buckets"))
    return {u: _Said(i.clone(), b.clone()) for u, i, b in zip(utterances, ids, buckets, strict=True)}
