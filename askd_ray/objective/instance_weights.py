"""Weights of the teacher's loss term: per utterance (AdaKD), and per token (the trust gate)."""

import torch

from askd_ray.config.objective import InstanceWeights, TrustGate

_MAX_EXPONENT = 60.0  # exp(-exp(60)) is already 0; a larger exponent would overflow


def instance_weights(settings: InstanceWeights, loss: torch.Tensor, threshold: float, k: float) -> torch.Tensor:
    """Return ``w_i`` of utterances from the teacher's mean losses ``loss``, any shape.

    AdaKD (arXiv 2405.08019): ``exp(-1 / sqrt(d))`` with the difficulty factor ``d = exp(-k (x - t))``, which is
    ``exp(-exp(k (x - t) / 2))``. ``threshold`` is t, in nats a token like the losses.
    """
    if settings.kind == "uniform":
        return torch.ones_like(loss)
    return torch.exp(-torch.exp((k * (loss - threshold) / 2.0).clamp_max(_MAX_EXPONENT)))


def trust_gate(settings: TrustGate, token_loss: torch.Tensor) -> torch.Tensor:
    """Return ``g_n`` of tokens from the teacher's cross-entropy ``token_loss`` of the reference tokens, any shape.

    ``exp(-token_loss)`` is the teacher's probability of the reference token. Where it is low, the teacher is wrong, and
    often confidently so.
    """
    if settings.kind == "none":
        return torch.ones_like(token_loss)
    probability = torch.exp(-token_loss)
    return (probability >= settings.threshold).float() if settings.kind == "hard" else probability**settings.power
