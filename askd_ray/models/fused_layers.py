"""Layers that the ONNX exporter writes as single operators of ONNX Runtime (its domain ``com.microsoft``).

A short window and a decoder step have so few rows that starting an operator takes as long as its arithmetic. The ONNX
standard needs ten operators for a product whose inputs are rounded to 8 bits, and eight for attention. In torch, the
layers compute the same in float32, with the rounded weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from askd_ray.models.row_quantization import quantized_rows

_DOMAIN = "com.microsoft::"
_BLOCK = 64  # weights that share a scale; of those where a row is rounded alone as among others, the fastest
_LEVELS = 127
_ZERO = 128  # of uint8 numbers
_MIN_SCALE = 1e-6


def joined(linears: Sequence[nn.Module]) -> nn.Linear:
    """Return one linear layer with the outputs of several, which read the same inputs; a missing bias is 0."""
    weights, biases = list[torch.Tensor](), list[torch.Tensor]()
    for layer in linears:
        weights.append(layer.get_parameter("weight").detach())
        biases.append(dict(layer.named_parameters()).get("bias", weights[-1].new_zeros(len(weights[-1]))).detach())
    weight = torch.cat(weights)
    result = nn.Linear(weight.shape[1], weight.shape[0])
    result.weight.data, result.bias.data = weight, torch.cat(biases)
    return result


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every linear layer in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        else:
            replace_linears(child, make)


class RowQuantized(nn.Module):
    """A linear layer for many rows: its weights are int8, with a scale for each output.

    When it runs, its inputs are rounded to 8 bits, with a scale for each row: a row of large numbers takes no bits from
    the others.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = quantized_rows(linear.weight)
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs ``(batch, n_rows, n_out)`` of inputs ``(batch, n_rows, n_in)``."""
        return _RowProduct.apply(inputs, self.weight, self.scale, self.bias)  # pyright: ignore[reportReturnType]


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return inputs @ (weight.float() * scale) + bias

    @staticmethod
    def symbolic(g: Any, inputs: Any, weight: Any, scale: Any, bias: Any) -> Any:
        def constant(value: float, dtype: torch.dtype = torch.float32) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        largest = g.op("ReduceMax", g.op("Abs", inputs), axes_i=[-1], keepdims_i=1)
        rows, level, zero = (
            g.op("Max", largest, constant(_MIN_SCALE)),
            constant(1 / _LEVELS),
            constant(_ZERO, torch.uint8),
        )
        rounded = g.op("QuantizeLinear", g.op("Div", inputs, rows), level, zero)
        product = g.op(_DOMAIN + "MatMulIntegerToFloat", rounded, weight, level, scale, zero)
        outputs = g.op("Add", g.op("Mul", product, rows), bias)
        return outputs.setType(inputs.type().with_sizes([None, None, bias.type().sizes()[0]]))


class BlockQuantized(nn.Module):
    """A linear layer for few rows: its weights have 8 bits, with a scale for each block of 128 inputs of an output.

    ONNX Runtime rounds its inputs to 8 bits, too, in blocks of the same size.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        n_blocks = -(-linear.in_features // _BLOCK)
        padded = functional.pad(linear.weight.detach().float(), (0, n_blocks * _BLOCK - linear.in_features))
        rounded, scale = quantized_rows(padded.reshape(-1, _BLOCK))
        weight = (rounded.to(torch.int16) + _ZERO).to(torch.uint8).reshape(linear.out_features, n_blocks, _BLOCK)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.register_buffer("bias", linear.bias.detach())
        self._n_in = linear.in_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs ``(batch, n_rows, n_out)`` of inputs ``(batch, n_rows, n_in)``."""
        product = _BlockProduct.apply(inputs, self.weight, self.scale, self.bias, self._n_in)
        return product  # pyright: ignore[reportReturnType]


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, n_in: int
    ) -> torch.Tensor:
        blocks = (weight.float() - _ZERO) * scale.reshape(*weight.shape[:2], 1)
        return inputs @ blocks.flatten(1)[:, :n_in].T + bias

    @staticmethod
    def symbolic(g: Any, inputs: Any, weight: Any, scale: Any, bias: Any, n_in: int) -> Any:
        n_out = bias.type().sizes()[0]
        settings = {"K_i": n_in, "N_i": n_out, "bits_i": 8, "block_size_i": _BLOCK, "accuracy_level_i": 4}
        operands = (inputs, weight, scale, _absent(g), _absent(g), bias)
        outputs = g.op(_DOMAIN + "MatMulNBits", *operands, **settings)
        return outputs.setType(inputs.type().with_sizes([None, None, n_out]))


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    n_heads: int,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what queries ``(batch, n, d_model)`` read in keys and values: ``(batch, n, d_model)``.

    Keys and values are ``(batch, length, d_model)``, or split by head, ``(batch, n_heads, length, width)``; ``lengths``
    ``(batch,)`` says how many of them are read, None means all.
    """
    return _Attention.apply(queries, keys, values, n_heads, lengths)  # pyright: ignore[reportReturnType]


def split_heads(states: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return states ``(batch, length, d_model)`` by head: ``(batch, n_heads, length, width)``."""
    return states.unflatten(-1, (n_heads, -1)).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        n_heads: int,
        lengths: torch.Tensor | None,
    ) -> torch.Tensor:
        keys, values = (x if x.dim() == 4 else split_heads(x, n_heads) for x in (keys, values))
        is_read = None
        if lengths is not None:
            is_read = (torch.arange(keys.shape[2]) < lengths[:, None])[:, None, None]
        read = functional.scaled_dot_product_attention(split_heads(queries, n_heads), keys, values, is_read)
        return read.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, queries: Any, keys: Any, values: Any, n_heads: int, lengths: Any) -> Any:
        operands = (queries, keys, values, *(() if lengths is None else (_absent(g), lengths)))
        outputs = g.op(_DOMAIN + "MultiHeadAttention", *operands, num_heads_i=n_heads)
        return outputs.setType(queries.type())


def causal_attention(
    projected: Sequence[torch.Tensor], past: Sequence[torch.Tensor], n_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what new tokens read in the tokens before and in themselves, and the keys and values of all tokens.

    ``projected`` has the queries, keys and values ``(batch, n, d_model)`` of the new tokens; ``past`` the keys and
    values of those before, ``(batch, n_heads, n_read, width)``, as they are returned.
    """
    return _CausalAttention.apply(*projected, *past, n_heads)  # pyright: ignore[reportReturnType]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
        n_heads: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        all_keys = torch.cat([past_keys, split_heads(keys, n_heads)], dim=2)
        all_values = torch.cat([past_values, split_heads(values, n_heads)], dim=2)
        n_new, total = queries.shape[1], all_keys.shape[2]
        before = torch.ones(n_new, total, dtype=torch.bool).tril(total - n_new)
        read = functional.scaled_dot_product_attention(split_heads(queries, n_heads), all_keys, all_values, before)
        return read.transpose(1, 2).flatten(2), all_keys, all_values

    @staticmethod
    def symbolic(
        g: Any, queries: Any, keys: Any, values: Any, past_keys: Any, past_values: Any, n_heads: int
    ) -> tuple[Any, ...]:
        absent = (_absent(g) for _ in ("bias", "key_padding_mask", "attention_bias"))
        operands = (queries, keys, values, *absent, past_keys, past_values)
        settings = {"num_heads_i": n_heads, "unidirectional_i": 1}
        read, *present = g.op(_DOMAIN + "MultiHeadAttention", *operands, **settings, outputs=3)
        sizes = [None, n_heads, None, None]
        return read.setType(queries.type()), *(x.setType(past_keys.type().with_sizes(sizes)) for x in present)


def _absent(g: Any) -> Any:
    """Return the place of an optional operand that is not given."""
    absent = g.op("prim::Constant")
    absent.setType(torch.OptionalType.ofTensor())
    return absent
