import copy

import torch
from torch import nn

from askd_ray.models.lora import LoraLinear, add_lora, freeze_weights


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 7, bias=False))
    made[3].weight = nn.Parameter(torch.randn(7, 6))
    return made


def test_a_model_begins_as_it_is_and_only_lora_learns():
    frozen, ids = model(), torch.tensor([1, 5, 2])
    expected = frozen(ids)
    weights = {name: parameter.clone() for name, parameter in frozen.named_parameters()}
    freeze_weights(frozen)
    assert not list(frozen.parameters()) and not frozen.state_dict()
    assert torch.equal(frozen(ids), expected)
    add_lora(frozen, rank=2)
    assert torch.equal(frozen(ids), expected)
    assert [name for name, _ in frozen.named_parameters()] == ["1.down", "1.up", "3.down", "3.up"]
    assert set(frozen.state_dict()) == {name for name, _ in frozen.named_parameters()}
    frozen(ids).square().sum().backward()
    layer = frozen[1]
    assert isinstance(layer, LoraLinear) and layer.up.grad is not None and layer.up.grad.abs().max() > 0.0
    with torch.no_grad():
        layer.up.normal_()
        hidden = frozen[0](ids)
        change = 2.0 * hidden @ layer.down.T @ layer.up.T
        torch.testing.assert_close(layer(hidden), hidden @ weights["1.weight"].T + weights["1.bias"] + change)


def test_copies_and_precisions_take_the_frozen_weights_along():
    frozen, ids = model(), torch.tensor([1, 5, 2])
    freeze_weights(frozen)
    add_lora(frozen, rank=2)
    half = copy.deepcopy(frozen).to(torch.bfloat16)
    assert {buffer.dtype for buffer in half.buffers()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in frozen.buffers()} == {torch.float32}
    torch.testing.assert_close(half(ids).float(), frozen(ids), atol=0.1, rtol=0.1)
