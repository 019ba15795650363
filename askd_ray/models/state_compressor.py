"""What all compressors share: states with their times, and the windows and masks of the states that they make."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import inside_windows, mask_of_keys

Number = TypeVar("Number", int, torch.Tensor)


@dataclass(frozen=True)
class States:
    """States ``(batch, length, d_model)``, and the time of each of them ``(length,)``, in encoder positions.

    ``inside`` (batch, length) marks the states in each row's window; None: all are.
    """

    values: torch.Tensor
    times: torch.Tensor
    inside: torch.Tensor | None


class StateCompressor(nn.Module, ABC):
    """Makes one state of each ``stride`` encoder positions; the last one of a window is made of those that are left."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, encoded: EncoderOutput) -> EncoderOutput:
        """Return the states ``(batch, ceil(n_positions / stride), d_model)`` for the decoder, with their masks."""
        times = torch.arange(encoded.states.shape[1], device=encoded.states.device)
        compressed = self.compress(States(encoded.states, times, encoded.inside))
        if encoded.inside is None:
            return EncoderOutput(compressed)
        inside = self.windows(encoded.inside, compressed.shape[1])
        return EncoderOutput(compressed, inside=inside, key_mask=mask_of_keys(inside, compressed))

    def windows(self, encoded_inside: torch.Tensor, length: int) -> torch.Tensor:
        """Return which of ``length`` compressed states are in each row's window ``(batch, length)``."""
        return inside_windows(ceil_div(encoded_inside.sum(dim=1), self.stride), length)

    @abstractmethod
    def compress(self, encoded: States) -> torch.Tensor:
        """Return the compressed states ``(batch, ceil(n_positions / stride), d_model)``."""


def ceil_div(n: Number, divisor: int) -> Number:
    """Return ``n / divisor``, rounded up."""
    return -(-n // divisor)


def identity_map(width: int, scale: float = 1.0) -> nn.Linear:
    """Return a linear map that begins as the identity times ``scale``."""
    made = nn.Linear(width, width)
    made.weight.data = scale * torch.eye(width)
    nn.init.zeros_(made.bias)
    return made


def zero_outside(values: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Return states ``(batch, length, d_model)`` with zeros after each row's window."""
    return values if inside is None else values.masked_fill(~inside[..., None], 0.0)
