"""Products with int8 weights and rows of inputs that have their scales."""

import pytest
import torch
from torch import nn

from askd_ray.models.row_quantization import (
    RowQuantizedLinear,
    column_scale,
    quantize_linears,
    quantized_rows,
)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


@pytest.mark.parametrize(("digits", "tolerance"), [(1, 0.01), (2, 0.006)])
@torch.no_grad()
def test_the_product_is_close(linear: nn.Linear, digits: int, tolerance: float):
    inputs = torch.randn(1, 20, 64) * torch.logspace(-3, 3, 20)[None, :, None]
    expected = linear(inputs) - linear.bias
    found = RowQuantizedLinear(linear, digits)(inputs) - linear.bias
    error = ((found - expected).abs().amax(-1) / inputs.abs().amax(-1)).max()
    assert 0.0 < error < tolerance * 64**0.5


@torch.no_grad()
def test_two_digits_round_less(linear: nn.Linear):
    inputs = torch.randn(1, 50, 64)
    weight, scale = quantized_rows(linear.weight)
    exact = inputs @ (weight * scale).T + linear.bias  # of the rounded weights
    errors = [(RowQuantizedLinear(linear, digits)(inputs) - exact).abs().max() for digits in (1, 2)]
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("digits", [1, 2])
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(linear: nn.Linear, digits: int):
    quantized, row = RowQuantizedLinear(linear, digits), torch.randn(1, 1, 64)
    together = quantized(torch.cat([row, 1000 * torch.randn(1, 5, 64)], dim=1))[:, :1]
    torch.testing.assert_close(together, quantized(row), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_zeros(linear: nn.Linear):
    assert torch.equal(RowQuantizedLinear(linear)(torch.zeros(1, 2, 64))[0, 1], linear.bias)


@torch.no_grad()
def test_large_columns_leave_the_others_their_bits():
    """As in Whisper's token embeddings: one column is 30 times as large, and the norm before it makes up for that."""
    generator = torch.Generator().manual_seed(0)
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 200, bias=False)
    linear.weight[:] = torch.randn(200, 64, generator=generator)
    linear.weight[:, 5] *= 30
    norm.weight[5] = 1 / 30
    inputs = norm(torch.randn(1, 50, 64, generator=generator))
    columns = column_scale(linear, norm)
    assert columns[5] == columns.min() and columns.max() / columns.min() > 10
    errors = [
        (RowQuantizedLinear(linear, 2, given)(inputs) - linear(inputs)).square().mean().sqrt()
        for given in (None, columns)
    ]
    assert errors[1] < errors[0] / 5


@torch.no_grad()
def test_columns_of_zeros_have_a_scale():
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 4, bias=False)
    linear.weight[:, 2] = 0.0
    norm.weight[3] = 0.0
    quantized = RowQuantizedLinear(linear, 2, column_scale(linear, norm))
    inputs = norm(torch.randn(1, 5, 8))
    torch.testing.assert_close(quantized(inputs), linear(inputs), atol=0.02, rtol=0)


def test_all_linear_layers_are_replaced():
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GELU(), nn.Linear(4, 2, bias=False)))
    quantize_linears(module, digits=2)
    kinds = [type(child) for child in module.modules()]
    assert kinds.count(RowQuantizedLinear) == 2 and nn.Linear not in kinds
    assert module(torch.randn(1, 3, 4)).shape == (1, 3, 2)


def test_layers_with_outliers_have_two_digits():
    module = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    quantize_linears(nn.Sequential(module), with_outliers=["fc2"])
    digits = {name: child.digits for name, child in module.items() if isinstance(child, RowQuantizedLinear)}
    assert digits == {"fc1": 1, "fc2": 2}
