"""One optimizer step of one rank: its micro-batches, one division by the global token count, finite check, update."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from askd_ray.config.train import Train
from askd_ray.data.schema import Batch
from askd_ray.errors import AskdError
from askd_ray.models.student import StudentModel
from askd_ray.objective.distiller import NAMES, OVER_TAUGHT, Distiller
from askd_ray.objective.schedules import Weights
from askd_ray.objective.tensors import TensorBatch
from askd_ray.train.ledger import TRAINED
from askd_ray.train.parallel import clip_gradients

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

OVERFLOW = "skipped: float16 overflow"
NOT_FINITE = "skipped: not finite"


@dataclass(frozen=True)
class StepResult:
    """A step over all ranks: the means of :data:`~askd_ray.objective.distiller.NAMES`, and the norm of the gradient.

    The means are over target tokens; ``taught`` is the share of those that have a teacher, and the teacher's values are
    means over these. The norm is that before clipping. ``outcome`` is ``trained``, or the reason why the step was
    skipped.
    """

    means: dict[str, float]
    n_tokens: int
    grad_norm: float
    outcome: str


@dataclass
class Stepper:
    """Takes optimizer steps.

    ``network`` comes from :func:`~askd_ray.train.parallel.wrap_network`. ``scaler`` keeps float16 gradients in range.
    """

    network: nn.Module
    student: StudentModel
    optimizer: torch.optim.Optimizer
    distiller: Distiller
    settings: Train
    scaler: GradScaler

    def step(self, batches: Sequence[Batch], weights: Weights, seeds: Sequence[int]) -> StepResult:
        """Take one optimizer step on this rank's micro-batches, together with the other ranks.

        ``seeds`` has the dropout seed of each micro-batch. All ranks have equally many micro-batches; some may be
        empty. Raises :class:`AskdError` with the ids of the utterances when loss or gradient is not finite, unless the
        recipe has ``train.not_finite: skip``. In both cases the student is unchanged.
        """
        n_ranks = dist.get_world_size() if dist.is_initialized() else 1
        device = next(self.student.parameters()).device
        n_tokens = int(_sum_over_ranks(torch.tensor([float(sum(b.n_tokens for b in batches))], device=device)).item())
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(len(NAMES), dtype=torch.float64, device=device)
        # DistributedDataParallel averages gradients over ranks; we need their sum, divided by the global token count.
        scale = n_ranks / max(1, n_tokens)
        suspects: list[str] = []
        for number, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            torch.manual_seed(seed)
            with self._gradient_sync(last=number == len(batches) - 1):
                with self._autocast(device):
                    loss, sums = self.distiller.sums(self.network, self.student, TensorBatch.of(batch, device), weights)
                self.scaler.scale(loss * scale).backward()
            totals += sums
            if not bool(torch.isfinite(loss)):
                suspects += batch.ids
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.student.parameters() if p.grad is not None]
        norm = clip_gradients(trained, self.settings.optimizer.clip_norm)
        means = _means(_sum_over_ranks(totals), n_tokens)
        outcome = self._outcome(means["loss"], norm, (suspects, [i for b in batches for i in b.ids]))
        if outcome == TRAINED:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(means, n_tokens, norm, outcome)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Let the ranks exchange gradients once per step, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _autocast(self, device: torch.device) -> torch.autocast:
        dtype = _DTYPES[self.settings.precision]
        return torch.autocast(device.type, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)

    def _outcome(self, loss: float, norm: float, ids: tuple[list[str], list[str]]) -> str:
        """Return the outcome of a step. It depends only on values that all ranks share, so all ranks agree.

        ``ids``: the utterances of this rank's micro-batches whose loss is not finite, and those of all its
        micro-batches.
        """
        if np.isfinite([loss, norm]).all():
            return TRAINED
        if np.isfinite(loss) and self.scaler.is_enabled():
            return OVERFLOW  # normal: the scaler raises its factor until one is too large
        if self.settings.not_finite == "skip":
            return NOT_FINITE
        ids_by_rank = [ids]
        if dist.is_initialized():
            ids_by_rank = [ids] * dist.get_world_size()
            dist.all_gather_object(ids_by_rank, ids)
        suspects, all_ids = ([i for rank in ids_by_rank for i in rank[which]] for which in (0, 1))
        raise AskdError(
            f"loss {loss} with gradient norm {norm} in the step of {', '.join(suspects or all_ids)}: not finite; "
            "train.not_finite=skip skips such steps"
        )


def _means(totals: torch.Tensor, n_tokens: int) -> dict[str, float]:
    means = dict(zip(NAMES, (totals / max(1, n_tokens)).tolist(), strict=True))
    taught = means["taught"] or 1.0
    return means | {name: means[name] / taught for name in OVER_TAUGHT}


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum in place over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
