import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.states import DecoderStatesLoss
from askd_ray.objective.decoder_states import states_distance

MSE, COSINE = DecoderStatesLoss(kind="mse"), DecoderStatesLoss(kind="cosine")


def random_states(n_tokens: int, width: int, seed: int, layers: tuple[int, ...] = (0, 3)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(n_tokens, width, generator=generator) for layer in layers}


def test_known_values():
    student = {0: torch.tensor([[1.0, 2.0]]), 1: torch.tensor([[3.0, 4.0]])}
    teacher = {0: torch.tensor([[2.0, 0.0]]), 1: torch.tensor([[4.0, 3.0]])}
    assert states_distance(MSE, student, teacher).tolist() == [(1 + 4) / 2 + (1 + 1) / 2]
    cosines = 2 / (5**0.5 * 2) + 24 / 25
    assert states_distance(COSINE, student, teacher).item() == pytest.approx(2 - cosines)


@given(st.integers(0, 4), st.integers(1, 9), st.integers(0, 99))
def test_equals_plain_loops(n_tokens: int, width: int, seed: int):
    student, teacher = random_states(n_tokens, width, seed), random_states(n_tokens, width, seed + 1, (0, 1, 3))
    expected_mse, expected_cosine = [0.0] * n_tokens, [0.0] * n_tokens
    for n in range(n_tokens):
        for layer in (0, 3):
            x, y = student[layer][n].double(), teacher[layer][n].double()
            expected_mse[n] += sum((float(x[i]) - float(y[i])) ** 2 for i in range(width)) / width
            norms = sum(float(v) ** 2 for v in x) ** 0.5 * sum(float(v) ** 2 for v in y) ** 0.5
            expected_cosine[n] += 1.0 - sum(float(x[i]) * float(y[i]) for i in range(width)) / norms
    assert states_distance(MSE, student, teacher).tolist() == pytest.approx(expected_mse, rel=1e-4, abs=1e-6)
    assert states_distance(COSINE, student, teacher).tolist() == pytest.approx(expected_cosine, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("settings", [MSE, COSINE])
def test_equal_states_have_no_distance_and_no_gradient(settings: DecoderStatesLoss):
    states = {layer: s.requires_grad_() for layer, s in random_states(5, 8, 1).items()}
    distance = states_distance(settings, states, {layer: s.detach() for layer, s in states.items()})
    assert distance.abs().max() < 1e-6
    for gradient in torch.autograd.grad(distance.sum(), list(states.values())):
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("settings", [MSE, COSINE])
def test_distance_is_float32_under_autocast(settings: DecoderStatesLoss):
    student, teacher = random_states(5, 8, 1), random_states(5, 8, 2)
    exact = states_distance(settings, student, {layer: s.half() for layer, s in teacher.items()})
    with torch.autocast("cpu", torch.bfloat16):
        found = states_distance(settings, student, {layer: s.half() for layer, s in teacher.items()})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact)
