"""Divergences between two distributions over tokens, one value a token, in nats.

They take log-probabilities ``(n_tokens, n)``: of the whole vocabulary, or of the buckets of :func:`to_buckets`.
"""

import math

import torch

from askd_ray.config.objective import Divergence

_LEAST = -1e4  # its probability is 0 in every float type


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``KL(p || q)`` of a teacher p and a student q: ``(n_tokens,)``."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return ``KL(q || p)``: ``(n_tokens,)``. It seeks the teacher's modes where the forward one covers them."""
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalised JSD, ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    Shape ``(n_tokens,)``; arXiv 2306.13649, equation 2.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * forward_kl(log_p, log_m) + (1.0 - beta) * forward_kl(log_q, log_m)


def divergence(settings: Divergence, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the recipe's divergence of a student q from a teacher p: ``(n_tokens,)``."""
    if settings.kind == "forward_kl":
        return forward_kl(log_p, log_q)
    return reverse_kl(log_p, log_q) if settings.kind == "reverse_kl" else jensen_shannon(log_p, log_q, settings.beta)


def to_buckets(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of k tokens each and of all the rest: ``(n_tokens, k + 1)``.

    ``log_probs`` (n_tokens, n_vocab), ``ids`` (n_tokens, k). A divergence over buckets is a lower bound of the one over
    the vocabulary (data processing inequality), and equal to it when all tokens are kept.
    """
    # The mass outside, summed there and not as 1 - sum: a difference near 0 would be noise.
    rest = log_probs.scatter(1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return at_least(torch.cat([log_probs.gather(1, ids), rest], dim=1))


def at_least(log_probs: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities without -inf, so that an empty bucket (k = all) adds 0, in value and in gradient."""
    return log_probs.clamp_min(_LEAST)
