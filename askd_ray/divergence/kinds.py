"""Divergences between two distributions over tokens, one value per token, in nats.

To add one, extend :data:`DIVERGENCES`, and the sections of ``Divergence`` in config/objective.py.

They take log-probabilities ``(n_tokens, n)``: of the whole vocabulary, or of the buckets of
:func:`~askd_ray.divergence.buckets.to_buckets`.
"""

import math
from collections.abc import Callable

import torch

from askd_ray.config.objective import Divergence


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``KL(p || q)`` of a teacher p and a student q: ``(n_tokens,)``."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``KL(q || p)``: ``(n_tokens,)``. It seeks the teacher's modes; the forward KL covers them."""
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalised JSD, ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    Shape ``(n_tokens,)``; arXiv 2306.13649, equation 2.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * forward_kl(log_p, log_m) + (1.0 - beta) * forward_kl(log_q, log_m)


DIVERGENCES: dict[str, Callable[..., torch.Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
}
"""By the recipe's ``objective.divergence.kind``: a function of the teacher's and the student's log-probabilities, and
of the recipe's parameters by name. Its value is 0 with a gradient of 0 where both are equal."""


def divergence(settings: Divergence, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the recipe's divergence of a student q from a teacher p: ``(n_tokens,)``."""
    return DIVERGENCES[settings.kind](log_p, log_q, **settings.model_dump(exclude={"kind", "t_squared"}))
