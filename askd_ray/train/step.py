"""One optimizer step of one rank: its micro-batches, one division by the global token count, finite check, update."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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
from askd_ray.torch_setup import DTYPES
from askd_ray.train.ledger import TRAINED
from askd_ray.train.parallel import clip_gradients

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
        device = next(self.student.parameters()).device
        self.optimizer.zero_grad(set_to_none=True)
        sums, n_tokens = self._gradients(batches, weights, seeds, device)
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.student.parameters() if p.grad is not None]
        norm = clip_gradients(trained, self.settings.optimizer.clip_norm)
        # The only time in a step at which the host waits for the device.
        whole = torch.cat([_sum_over_ranks(sums.sum(dim=0)), torch.stack([n_tokens, norm.double()]), sums[:, 0]])
        values = whole.tolist()
        totals, (n, grad_norm), losses = values[: len(NAMES)], values[len(NAMES) :][:2], values[len(NAMES) + 2 :]
        means = _means(totals, n)
        suspects = [
            i for batch, loss in zip(batches, losses, strict=True) if not math.isfinite(loss) for i in batch.ids
        ]
        outcome = self._outcome(means["loss"], grad_norm, (suspects, [i for b in batches for i in b.ids]))
        if outcome == TRAINED:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(means, int(n), grad_norm, outcome)

    def _gradients(
        self, batches: Sequence[Batch], weights: Weights, seeds: Sequence[int], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients; return the sums of each micro-batch ``(n, len(NAMES))`` and the global token count."""
        n_ranks = dist.get_world_size() if dist.is_initialized() else 1
        n_tokens = torch.full((), float(sum(b.n_tokens for b in batches)), dtype=torch.float64, device=device)
        # DistributedDataParallel averages gradients over ranks; we need their sum, divided by the global token count.
        scale = n_ranks / _sum_over_ranks(n_tokens).clamp_min(1.0)
        all_sums: list[torch.Tensor] = []
        with self._autocast(device):  # around all micro-batches: it casts each weight once, and keeps the result
            for number, batch in enumerate(TensorBatch.each(batches, device)):
                torch.manual_seed(seeds[number])
                with self._gradient_sync(last=number == len(batches) - 1):
                    loss, sums = self.distiller.sums(self.network, self.student, batch, weights)
                    with torch.autocast(device.type, enabled=False):
                        self.scaler.scale(loss * scale).backward()
                all_sums.append(sums)
        return torch.stack(all_sums), n_tokens

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Let the ranks exchange gradients once per step, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _autocast(self, device: torch.device) -> torch.autocast:
        dtype = DTYPES[self.settings.precision]
        return torch.autocast(device.type, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)

    def _outcome(self, loss: float, norm: float, ids: tuple[list[str], list[str]]) -> str:
        """Return the outcome of a step. It depends only on values that all ranks share, so all ranks agree.

        ``ids``: the utterances of this rank's micro-batches whose loss is not finite, and those of all its
        micro-batches.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return TRAINED
        if math.isfinite(loss) and self.scaler.is_enabled():
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


def _means(totals: Sequence[float], n_tokens: float) -> dict[str, float]:
    means = {name: total / max(1.0, n_tokens) for name, total in zip(NAMES, totals, strict=True)}
    taught = means["taught"] or 1.0
    return means | {name: means[name] / taught for name in OVER_TAUGHT}


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum in place over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
