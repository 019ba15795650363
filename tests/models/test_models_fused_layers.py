"""Layers in ONNX Runtime's own operators: what torch computes, and rounding of 8 bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from askd_ray.models.fused_layers import (
    BlockQuantized,
    RowQuantized,
    attention,
    causal_attention,
    joined,
    replace_linears,
    split_heads,
)
from askd_ray.models.onnx_export import export_graph

N_HEADS, WIDTH = 2, 32


class Calls(nn.Module):
    """A function as a module, for the exporter."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor):
        return self.function(*inputs)


def in_onnxruntime(module: nn.Module, inputs: Sequence[torch.Tensor], folder: Path) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = module(*inputs)
    names = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(1 if outputs is None else len(outputs))]
    export_graph(module, tuple(inputs), folder / "model.onnx", names, {})
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feed = {name: x.numpy() for name, x in zip(names[0], inputs, strict=True)}
    return [np.asarray(x) for x in session.run(names[1], feed)]


@pytest.mark.parametrize("kind", [RowQuantized, BlockQuantized])
@given(
    n_rows=st.integers(1, 9), n_in=st.sampled_from([16, 128, 300]), n_out=st.integers(1, 70), outlier=st.floats(1, 50)
)
@settings(max_examples=8, deadline=None)
def test_a_product_is_close_to_that_of_float32(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[RowQuantized] | type[BlockQuantized],
    n_rows: int,
    n_in: int,
    n_out: int,
    outlier: float,
):
    """Every row has an error in proportion to its own size, though one row is far larger than the others."""
    torch.manual_seed(n_in + n_out)
    linear = nn.Linear(n_in, n_out)
    inputs = torch.randn(1, n_rows, n_in)
    inputs[0, 0] *= outlier
    quantized = kind(linear)
    (found,) = in_onnxruntime(Calls(lambda x: (quantized(x),)), [inputs], tmp_path_factory.mktemp("product"))
    with torch.no_grad():
        exact, in_torch = linear(inputs)[0].numpy(), quantized(inputs)[0].numpy()
    size = (inputs.norm(dim=-1) * linear.weight.norm(dim=1).max())[0, :, None].detach().numpy()
    assert (np.abs(in_torch - exact) <= 0.01 * size).all()
    assert (np.abs(found[0] - in_torch) <= 0.02 * size).all()


def test_a_bias_of_minus_infinity_stays(tmp_path: Path):
    linear = nn.Linear(128, 4)
    linear.bias.data[2] = -torch.inf
    quantized = BlockQuantized(linear)
    (found,) = in_onnxruntime(Calls(lambda x: (quantized(x),)), [torch.randn(1, 1, 128)], tmp_path)
    assert np.isneginf(found[0, 0]).tolist() == [False, False, True, False]


@pytest.mark.parametrize("n_read", [0, 5])
@pytest.mark.parametrize("n_new", [1, 4])
def test_attention_is_that_of_torch(tmp_path: Path, n_read: int, n_new: int):
    """Causal attention: a token reads those before and itself, never a later one of the same pass."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, n_new, WIDTH) for _ in range(3)]
    past = [torch.randn(1, N_HEADS, n_read, WIDTH // N_HEADS) for _ in range(2)]
    window = [torch.randn(1, N_HEADS, 7, WIDTH // N_HEADS) for _ in range(2)]

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            *causal_attention(x[:3], x[3:5], N_HEADS),
            attention(x[0], x[5], x[6], N_HEADS),
            attention(*x[:3], N_HEADS),
        )

    given_inputs = [*inputs, *past, *window]
    for found, expected in zip(in_onnxruntime(Calls(run), given_inputs, tmp_path), run(*given_inputs), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    whole = [torch.cat([before, split_heads(x, N_HEADS)], dim=2) for before, x in zip(past, inputs[1:], strict=True)]
    alone = attention(inputs[0][:, :1], whole[0][:, :, : n_read + 1], whole[1][:, :, : n_read + 1], N_HEADS)
    torch.testing.assert_close(run(*given_inputs)[0][:, :1], alone)


def test_joined_layers_have_the_outputs_of_all():
    first, second = nn.Linear(8, 3), nn.Linear(8, 5, bias=False)
    inputs = torch.randn(2, 8)
    torch.testing.assert_close(joined([first, second])(inputs), torch.cat([first(inputs), second(inputs)], dim=-1))


def test_linear_layers_are_replaced_at_every_depth():
    module = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 4)))
    replace_linears(module, RowQuantized)
    assert not [child for child in module.modules() if isinstance(child, nn.Linear)]
    assert module(torch.randn(1, 2, 8)).shape == (1, 2, 4)
