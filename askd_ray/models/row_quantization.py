"""Dynamic int8 quantization with a scale for each row of a product's input, for the ONNX exporter.

ONNX Runtime's own dynamic quantization has one scale for all rows. Then a token's logits depend on the other tokens of
the pass, and a decoder that reads several tokens writes another text than one that reads one at a time.
"""

from typing import Any

import torch
from torch import nn

_LEVELS = 127
_ZERO = 128  # of uint8 inputs: x86 multiplies uint8 with int8
_MIN_SCALE = 1e-6
_FLOAT = 1  # TensorProto.FLOAT


class _RowQuantizedProduct(torch.autograd.Function):
    """``inputs`` (..., n_in) times int8 ``weight`` (n_in, n_out) with ``scale`` (n_out,)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rows = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=_MIN_SCALE)
        rounded = (inputs / rows * _LEVELS).round()
        return (rounded @ weight.float()) * scale * (rows / _LEVELS)

    @staticmethod
    def symbolic(g: Any, inputs: Any, weight: Any, scale: Any) -> Any:
        def constant(value: float, dtype: torch.dtype = torch.float32) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        largest = g.op("ReduceMax", g.op("Abs", inputs), axes_i=[-1], keepdims_i=1)
        rows = g.op("Max", largest, constant(_MIN_SCALE))
        zero = constant(_ZERO, torch.uint8)
        rounded = g.op("QuantizeLinear", g.op("Div", inputs, rows), constant(1 / _LEVELS), zero)
        product = g.op("Cast", g.op("MatMulInteger", rounded, weight, zero), to_i=_FLOAT)
        scaled = g.op("Mul", g.op("Mul", product, scale), g.op("Div", rows, constant(_LEVELS)))
        return scaled.setType(inputs.type().with_sizes([None] * len(inputs.type().sizes() or [0, 0, 0])))


class RowQuantizedLinear(nn.Module):
    """A linear layer with int8 weights, one scale for each column of them and for each row of its input."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = quantized_rows(linear.weight)
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale[:, 0])
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the linear layer's output ``(..., n_out)``."""
        product = _RowQuantizedProduct.apply(inputs, self.weight, self.scale)
        assert isinstance(product, torch.Tensor)
        return product if self.bias is None else product + self.bias


class QuantizedEmbedding(nn.Module):
    """Embeddings in int8, with a scale for each token."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        rounded, scale = quantized_rows(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens."""
        return self.weight[ids].float() * self.scale[ids]


def quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of a matrix in int8, and the scale ``(n_rows, 1)`` of each."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=_MIN_SCALE) / _LEVELS
    return (weight / scale).round().to(torch.int8), scale


def quantize_linears(module: nn.Module) -> None:
    """Replace all linear layers in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, RowQuantizedLinear(child))
        else:
            quantize_linears(child)
