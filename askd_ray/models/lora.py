"""LoRA (arXiv 2106.09685): learnt changes of low rank to the linear layers of a model whose weights stay as they are.

Ours and not peft's: a frozen weight here is a buffer that no checkpoint, student or average of weights holds.
"""

import torch
from torch import nn
from torch.nn import functional

_SCALE = 2.0  # of the learnt change: alpha / r of the paper


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``2 B A x``: ``A`` (rank, n_in) begins at random, ``B`` (n_out, rank) at 0."""

    def __init__(self, frozen: nn.Linear, rank: int):
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``W x + 2 B A x``, in the type of ``W x``."""
        y = self.frozen(x)
        change = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up)
        return y + _SCALE * change.to(y.dtype)


def freeze_weights(model: nn.Module) -> None:
    """Turn all parameters of a model into buffers that are not saved. Tied weights stay tied."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


def add_lora(model: nn.Module, rank: int) -> None:
    """Add learnt changes to all linear layers of a frozen model: its only parameters."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoraLinear(child, rank))
