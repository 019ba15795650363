"""The ASKD objective of one batch, as sums: whoever knows the global token count divides by it, once.

``L = sum_n [(1 - a - b) * CE_n + a * T^2 * KL(p_teacher || p_student)_n + b * T^2 * KL(p_self || p_student)_n] / N``,
all distributions at temperature T.
"""

from dataclasses import dataclass

import torch

from askd_ray.data.schema import IGNORED
from askd_ray.distill.divergence import dense_kl, top_k_kl


@dataclass(frozen=True)
class TensorBatch:
    """The arrays of a :class:`~askd_ray.data.schema.Batch` that the objective needs, as tensors on its device."""

    targets: torch.Tensor  # (batch, length)
    top_ids: torch.Tensor  # (batch, length, k)
    top_log_probs: torch.Tensor  # (batch, length, k)
    rest_log_prob: torch.Tensor  # (batch, length)


@dataclass(frozen=True)
class LossSums:
    """Sums over target tokens, in nats; ``total`` carries the gradient."""

    total: torch.Tensor
    ce: torch.Tensor
    kd: torch.Tensor
    self_kd: torch.Tensor

    def parts(self) -> torch.Tensor:
        """Return ``[total, ce, kd, self_kd]`` without gradient, float64: to be summed over batches and ranks."""
        return torch.stack([self.total, self.ce, self.kd, self.self_kd]).detach().double()


def loss_sums(
    logits: torch.Tensor,
    batch: TensorBatch,
    weights: tuple[float, float],
    temperature: float,
    self_logits: torch.Tensor | None,
) -> LossSums:
    """Return the objective's sums for student logits ``(batch, length, n_vocab)``.

    ``weights`` are ``(a, b)``. A term whose weight is 0 is not computed. A batch without targets gives 0 with a
    gradient of 0.
    """
    a, b = weights
    valid = batch.targets != IGNORED
    student, targets = logits[valid].float(), batch.targets[valid]
    log_q = torch.log_softmax(student, dim=-1)
    log_q_soft = log_q if temperature == 1.0 else torch.log_softmax(student / temperature, dim=-1)
    zero = log_q[:0].sum()  # keeps every parameter in the graph, which DistributedDataParallel waits for
    ce = -log_q.gather(1, targets[:, None]).sum()
    kd = self_kd = zero
    if a > 0.0:
        soft = (batch.top_ids[valid], batch.top_log_probs[valid], batch.rest_log_prob[valid])
        kd = temperature**2 * top_k_kl(log_q_soft, *soft).sum()
    if b > 0.0 and self_logits is not None:
        log_p = torch.log_softmax(self_logits[valid].float() / temperature, dim=-1)
        self_kd = temperature**2 * dense_kl(log_q_soft, log_p).sum()
    return LossSums((1.0 - a - b) * ce + a * kd + b * self_kd + zero, ce, kd, self_kd)
