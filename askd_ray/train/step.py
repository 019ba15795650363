"""One step of one rank: forward, sums, one division by the global token count, finite check, update."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from askd_ray.data.schema import Batch
from askd_ray.distill.distiller import NAMES, Distiller
from askd_ray.distill.schedules import Weights
from askd_ray.distill.tensors import TensorBatch
from askd_ray.errors import AskdError
from askd_ray.models.windows import WindowedWhisper


@dataclass(frozen=True)
class StepResult:
    """A step over all ranks: the means of :data:`~askd_ray.distill.distiller.NAMES` over target tokens, and the norm of
    the gradient before clipping.
    """

    means: dict[str, float]
    n_tokens: int
    grad_norm: float


def train_step(
    network: nn.Module,
    student: WindowedWhisper,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    distiller: Distiller,
    weights: Weights,
    clip_norm: float,
) -> StepResult:
    """Take one optimizer step on this rank's batch, together with the other ranks.

    ``network`` is ``student``, or DistributedDataParallel around it.
    Raises :class:`AskdError` with the batch's ids when loss or gradient is not finite: the model is then unchanged.
    """
    tensors = TensorBatch.of(batch, next(network.parameters()).device)
    loss, sums = distiller.sums(network, student, tensors, weights)
    totals = torch.cat([sums, sums.new_tensor([batch.n_tokens])])
    world_size = _sum_over_ranks(totals)
    n_tokens = max(1.0, totals[-1].item())
    optimizer.zero_grad(set_to_none=True)
    # DistributedDataParallel averages gradients over ranks; ours are sums, divided by the global count.
    (loss * (world_size / n_tokens)).backward()
    trained = [p for p in network.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, clip_norm).item()
    means = dict(zip(NAMES, (totals[:-1] / n_tokens).tolist(), strict=True))
    if not np.isfinite([means["loss"], norm]).all():
        raise AskdError(
            f"loss {means['loss']} with gradient norm {norm} in the batch of {', '.join(batch.ids)}: not finite"
        )
    optimizer.step()
    return StepResult(means, int(totals[-1].item()), norm)


def _sum_over_ranks(values: torch.Tensor) -> int:
    """Sum in place over all ranks; returns their number."""
    if not dist.is_initialized():
        return 1
    dist.all_reduce(values)
    return dist.get_world_size()
