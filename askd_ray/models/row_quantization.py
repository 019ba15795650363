"""Dynamic int8 quantization with a scale for each row of a product's input, for the ONNX exporter.

ONNX Runtime's own dynamic quantization has one scale for all rows. Then a token's logits depend on the other tokens of
the pass, and a decoder that reads several tokens writes another text than one that reads one at a time.

A difference in the last bit of a number can still change its 8 bits, and with them differences of logits by up to 0.5
(tiny.en, passes over all tokens and over one). With two ``digits`` it is 0.1: what the 8 bits of a number leave gets 7
bits more, as one more row of the same product. The weights, which take most of the time, are read once for both.

Whisper's token embeddings have a few columns of large values, and the scale of each token follows them: in the smaller
columns little is left of 8 bits. :func:`column_scale` balances the columns of the projection; without it, rounding its
weights changes logits more than rounding everything else.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

_LEVELS = 127
_ZERO = 128  # of uint8 inputs: x86 multiplies uint8 with int8
_MIN_SCALE = 1e-6
_FLOAT = 1  # TensorProto.FLOAT

OUTLIERS = ("fc2", "out_proj")
"""The layers of an encoder in whose inputs a few values are much larger than the others: no norm is before them."""


class _RowQuantizedProduct(torch.autograd.Function):
    """``inputs`` (1, n_rows, n_in) times int8 ``weight`` (n_in, n_out) with ``scale`` (n_out,)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, digits: int) -> torch.Tensor:
        rows = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=_MIN_SCALE)
        levels = _LEVELS if digits == 1 else _LEVELS * 2 * _LEVELS
        rounded = (inputs / rows * levels).round() / levels
        return (rounded @ weight.float()) * scale * rows

    @staticmethod
    def symbolic(g: Any, inputs: Any, weight: Any, scale: Any, digits: int) -> Any:
        def constant(value: float, dtype: torch.dtype = torch.float32) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        largest = g.op("ReduceMax", g.op("Abs", inputs), axes_i=[-1], keepdims_i=1)
        rows, zero = g.op("Max", largest, constant(_MIN_SCALE)), constant(_ZERO, torch.uint8)
        scaled, level = g.op("Div", inputs, rows), constant(1 / _LEVELS)
        rounded = g.op("QuantizeLinear", scaled, level, zero)
        if digits == 2:
            rest = g.op("Sub", scaled, g.op("DequantizeLinear", rounded, level, zero))
            second = g.op("QuantizeLinear", rest, constant(1 / (_LEVELS * 2 * _LEVELS)), zero)
            rounded = g.op("Concat", rounded, second, axis_i=-2)
        product = g.op("Cast", g.op("MatMulInteger", rounded, weight, zero), to_i=_FLOAT)
        if digits == 2:
            first, second = g.op("Split", product, axis_i=-2, outputs=2)
            product = g.op("Add", first, g.op("Div", second, constant(2 * _LEVELS)))
        scaled = g.op("Mul", g.op("Mul", product, scale), g.op("Div", rows, constant(_LEVELS)))
        return scaled.setType(inputs.type().with_sizes([None] * 3))


class RowQuantizedLinear(nn.Module):
    """A linear layer with int8 weights, one scale for each output and for each row of its input.

    ``digits`` 1 or 2: its inputs have 8 or 15 bits. ``columns`` (n_in,): its weights are multiplied by these before
    they are rounded, and its inputs are divided by them.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    columns: torch.Tensor | None

    def __init__(self, linear: nn.Linear, digits: int = 1, columns: torch.Tensor | None = None):
        super().__init__()
        weight, scale = quantized_rows(linear.weight if columns is None else linear.weight * columns)
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("columns", columns)
        self.bias: nn.Parameter | None = linear.bias
        self.digits = digits

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the linear layer's output ``(1, n_rows, n_out)``."""
        if self.columns is not None:
            inputs = inputs / self.columns
        product = _RowQuantizedProduct.apply(inputs, self.weight, self.scale, self.digits)
        assert isinstance(product, torch.Tensor)
        return product if self.bias is None else product + self.bias


def column_scale(linear: nn.Linear, norm: nn.LayerNorm) -> torch.Tensor:
    """Return the ``columns`` (n_in,) of a linear layer whose input is the output of a norm.

    With the square root of the input's size over that of the weights, products of both have the same size in all
    columns, half of it from either.
    """
    weight = linear.weight.detach().float()
    inputs = norm.weight.detach().float().abs().clamp(min=_MIN_SCALE)
    return (inputs / weight.square().mean(dim=0).sqrt().clamp(min=_MIN_SCALE)).sqrt()


def quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of a matrix in int8, and the scale ``(n_rows, 1)`` of each."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=_MIN_SCALE) / _LEVELS
    return (weight / scale).round().to(torch.int8), scale


def quantize_linears(module: nn.Module, digits: int = 1, with_outliers: Collection[str] = ()) -> None:
    """Replace all linear layers in a module, those ``with_outliers`` in their inputs by layers of two digits."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, RowQuantizedLinear(child, 2 if name in with_outliers else digits))
        else:
            quantize_linears(child, digits, with_outliers)
