"""The loss between decoder states of student and teachers, at the target tokens (docs/objective.md)."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from askd_ray.config.states import DecoderStatesLoss

States = Mapping[int, torch.Tensor]
"""Decoder states ``(n_tokens, d_model)`` by the teacher's layer."""


def states_distance(settings: DecoderStatesLoss, student: States, reference: States) -> torch.Tensor:
    """Return the distance of each token, ``(n_tokens,)`` in float32, summed over the student's layers.

    ``mse``: the squared difference, averaged over d_model; ``cosine``: 1 - cosine similarity. ``reference`` has the
    student's layers and perhaps others.
    """
    per_layer: list[torch.Tensor] = []
    for layer, states in student.items():
        states, expected = states.float(), reference[layer].float()
        if settings.kind == "mse":
            per_layer.append((states - expected).square().mean(dim=-1))
        else:
            per_layer.append(1.0 - functional.cosine_similarity(states, expected, dim=-1))
    return torch.stack(per_layer).sum(dim=0)
