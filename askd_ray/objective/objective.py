"""The objective of one batch, as sums over tokens: the training step divides once, by the global token count.

``L = sum_n [c_n CE_n + a m_n w_i g_n T^2 D(teacher, student)_n + b T^2 D(self, student)_n] / N`` with
c_n = 1 - a m_n - b (ASKD), 1 - a m_n w_i g_n - b (AdaKD) or a constant (Distil-Whisper); see docs/objective.md. For a
CTC head, CE_n is the token's share of the CTC loss, and a and b are 0 at tokens whose distributions have no position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from askd_ray.config.objective import Objective
from askd_ray.divergence.kinds import divergence
from askd_ray.objective.chunked import chunked_sums
from askd_ray.objective.instance_weights import trust_gate
from askd_ray.objective.references import Distribution, Reference
from askd_ray.objective.schedules import Weights

OF_TEACHER = ("kd", "teacher_ce", "teacher_share", "taught_ce")
PARTS = ("loss", "ce", "self_kd", *OF_TEACHER, "taught")
"""The sums over target tokens: the loss, its parts before weighting (nats), and ``taught``, the number of tokens that
have a teacher; over those tokens :data:`OF_TEACHER`: the divergence from it, its cross-entropy of the references,
``w_i g_n``, and the student's cross-entropy. A part with weight 0 is not computed and stays 0."""


@dataclass(frozen=True)
class TokenBatch:
    """The target tokens of a batch ``(n_tokens,)``, of the same shape values of their utterances, and teachers.

    ``has_teacher`` is m_n (bool), ``instance_weights`` is w_i; None: all are 1. ``task_loss`` is CE_n if it is not the
    cross-entropy of ``targets``. ``comparable`` (bool) is False where no distributions are compared; None: all are.
    """

    targets: torch.Tensor
    has_teacher: torch.Tensor
    instance_weights: torch.Tensor | None
    teacher: Reference | None
    self_teacher: Reference | None
    task_loss: torch.Tensor | None = None
    comparable: torch.Tensor | None = None


def objective_sums(
    settings: Objective,
    weights: Weights,
    tokens: TokenBatch,
    student: tuple[torch.Tensor, torch.Tensor],
    observe: Callable[[slice, torch.Tensor], None],
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, which carries the gradient, and the sums of :data:`PARTS` in float64; all 0 without tokens.

    ``student``: its hidden states ``(n_tokens, d_model)`` and its projection ``(n_vocab, d_model)``. ``observe`` is
    called with the student's log-probabilities at temperature T, ``chunk_tokens`` rows at a time (None: as many as fit
    the device).
    """
    t = weights.temperature
    scale = t**2 if settings.divergence.t_squared else 1.0
    a = weights.teacher_weight if tokens.teacher is not None else 0.0
    b = weights.self_weight if tokens.self_teacher is not None else 0.0

    def sums_of(logits: torch.Tensor, task_loss: torch.Tensor | None, rows: slice) -> torch.Tensor:
        targets, taught = tokens.targets[rows], tokens.has_teacher[rows]
        comparable = None if tokens.comparable is None else tokens.comparable[rows]
        taught = taught if comparable is None else taught & comparable
        self_weight = b if comparable is None else b * comparable
        logits = logits.float()
        log_q = torch.log_softmax(logits, dim=-1)
        log_q_soft = log_q if t == 1.0 else torch.log_softmax(logits / t, dim=-1)
        observe(rows, log_q_soft.detach())
        ce = -log_q.gather(1, targets[:, None])[:, 0] if task_loss is None else task_loss
        kd = self_kd = teacher_ce = share = torch.zeros_like(ce)
        m = taught.to(ce.dtype)
        if a > 0.0 and tokens.teacher is not None:
            teacher = tokens.teacher.distribution(rows, targets, t)
            teacher_ce = m * teacher.token_loss
            share = m if tokens.instance_weights is None else m * tokens.instance_weights[rows]
            if settings.trust_gate.kind != "none":
                share = share * trust_gate(settings.trust_gate, teacher.token_loss)
            kd = scale * m * _divergence(settings, teacher, log_q_soft)
        if b > 0.0 and tokens.self_teacher is not None:
            self_kd = scale * _divergence(settings, tokens.self_teacher.distribution(rows, targets, t), log_q_soft)
        loss = _ce_weight(settings, a, self_weight, taught, share) * ce + a * share * kd + self_weight * self_kd
        parts = (ce, self_kd, kd, teacher_ce, share, m * ce, m)
        # Only the loss has a gradient, and all sums are one kernel.
        return torch.stack([loss, *(part.detach() for part in parts)]).sum(dim=1)

    return chunked_sums(*student, sums_of, chunk_tokens, tokens.task_loss)


def _divergence(settings: Objective, reference: Distribution, log_q: torch.Tensor) -> torch.Tensor:
    return divergence(settings.divergence, reference.log_p, reference.of_student(log_q))


def _ce_weight(
    settings: Objective, a: float, b: float | torch.Tensor, taught: torch.Tensor, share: torch.Tensor
) -> torch.Tensor | float:
    """Return ``c_n``; ``taught`` is ``m_n`` and ``share`` is ``m_n w_i g_n`` of the tokens."""
    if settings.ce_weight == "complement":
        return torch.where(taught, 1.0 - a - b, 1.0 - b)
    return 1.0 - a * share - b if settings.ce_weight == "instance_complement" else settings.ce_weight
