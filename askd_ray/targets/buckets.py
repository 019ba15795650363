"""A distribution over tokens as its k likeliest and one bucket for the rest: what soft labels keep."""

import torch

_LEAST = -1e4  # its probability is 0 in every float type


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
