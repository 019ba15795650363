"""One step of one rank: forward, sums, one division by the global token count, finite check, update."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from askd_ray.data.schema import Batch
from askd_ray.distill.objective import TensorBatch, loss_sums
from askd_ray.distill.self_teacher import Snapshot
from askd_ray.errors import AskdError


@dataclass(frozen=True)
class StepResult:
    """Losses of a step over all ranks, in nats a token, and the norm of the gradient before clipping."""

    loss: float
    ce: float
    kd: float
    self_kd: float
    n_tokens: int
    grad_norm: float


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    snapshot: Snapshot,
    weights: tuple[float, float],
    temperature: float,
    clip_norm: float,
) -> StepResult:
    """Take one optimizer step on this rank's batch, together with the other ranks.

    ``network`` is a :class:`~askd_ray.models.windows.WindowedWhisper`, or DistributedDataParallel around one.
    Raises :class:`AskdError` with the batch's ids when loss or gradient is not finite: the model is then unchanged.
    """
    device = next(network.parameters()).device
    log_mel, decoder_ids = _tensor(batch.log_mel, device), _tensor(batch.decoder_ids, device)
    tensors = TensorBatch(
        *(_tensor(a, device) for a in (batch.targets, batch.top_ids, batch.top_log_probs, batch.rest_log_prob))
    )
    self_logits = snapshot.logits(log_mel, decoder_ids) if weights[1] > 0.0 else None
    sums = loss_sums(network(log_mel, decoder_ids), tensors, weights, temperature, self_logits)
    totals = torch.cat([sums.parts(), sums.parts().new_tensor([batch.n_tokens])])
    world_size = _sum_over_ranks(totals)
    n_tokens = max(1.0, totals[-1].item())
    optimizer.zero_grad(set_to_none=True)
    # DistributedDataParallel averages gradients over ranks; ours are sums, divided by the global count.
    (sums.total * (world_size / n_tokens)).backward()
    trained = [p for p in network.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, clip_norm).item()
    loss, ce, kd, self_kd = (totals[:-1] / n_tokens).tolist()
    if not np.isfinite([loss, norm]).all():
        raise AskdError(f"loss {loss} with gradient norm {norm} in the batch of {', '.join(batch.ids)}: not finite")
    optimizer.step()
    return StepResult(loss, ce, kd, self_kd, int(totals[-1].item()), norm)


def _sum_over_ranks(values: torch.Tensor) -> int:
    """Sum in place over all ranks; returns their number."""
    if not dist.is_initialized():
        return 1
    dist.all_reduce(values)
    return dist.get_world_size()


def _tensor(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
