"""The format of soft labels: a distribution over tokens as its k most likely tokens and one bucket for the rest."""

import torch

_MIN_LOG_PROB = -1e4  # exp of it is 0 in every float type


def to_buckets(log_probs: torch.Tensor, ids: torch.Tensor, empty: torch.Tensor | None = None) -> torch.Tensor:
    """Return the log-probabilities of the k tokens ``ids`` and of the rest: ``(n_tokens, k + 1)``.

    ``log_probs`` (n_tokens, n_vocab), ``ids`` (n_tokens, k). ``empty`` (n_tokens, k + 1), if given, marks buckets that
    stay empty, because their token has another bucket. A divergence over buckets is a lower bound of the
    divergence over the vocabulary (data processing inequality), and equal to it when all tokens are kept.
    """
    # Sum the probabilities of the rest directly: 1 - sum of the k tokens would lose precision near 0.
    rest = log_probs.scatter(1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    buckets = torch.cat([log_probs.gather(1, ids), rest], dim=1)
    return clamp_to_finite(buckets if empty is None else buckets.masked_fill(empty, -torch.inf))


def clamp_to_finite(log_probs: torch.Tensor) -> torch.Tensor:
    """Replace -inf by a finite log-probability, so that an empty bucket (k = all) adds 0 to value and gradient."""
    return log_probs.clamp_min(_MIN_LOG_PROB)
