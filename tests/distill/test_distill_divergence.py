import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.distill import divergence

N_VOCAB = 13


def logits(seed: int, n: int = 5, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(n, N_VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def dense_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Of logits."""
    return divergence.dense_kl(*(torch.log_softmax(x / temperature, -1) for x in (student, teacher)))


def top_k_kl(student: torch.Tensor, ids, values, rest, temperature: float = 1.0) -> torch.Tensor:
    """Of the student's logits."""
    return divergence.top_k_kl(torch.log_softmax(student / temperature, -1), ids, values, rest)


def kept(teacher: torch.Tensor, k: int, temperature: float = 1.0):
    log_p = torch.log_softmax(teacher / temperature, -1)
    top = log_p.topk(k, -1)
    return top.indices, top.values, log_p.scatter(1, top.indices, -torch.inf).logsumexp(-1)


def test_dense_kl_of_a_coin_by_hand():
    teacher = torch.log(torch.tensor([[0.75, 0.25]]))
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert dense_kl(student, teacher).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_identical_distributions_have_no_divergence_and_no_gradient(temperature: float):
    student = logits(0).requires_grad_()
    own = student.detach()
    top_k = top_k_kl(student, *kept(own, 4, temperature), temperature)
    loss = (dense_kl(student, own, temperature) + top_k).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None and student.grad.abs().max().item() < 1e-5


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, N_VOCAB - 1), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_top_k_is_a_lower_bound_of_the_dense_divergence(seed: int, k: int, temperature: float):
    teacher, student = logits(seed), logits(seed + 1)
    bound = top_k_kl(student, *kept(teacher, k, temperature), temperature)
    assert (bound >= -1e-5).all()
    assert (bound <= dense_kl(student, teacher, temperature) + 1e-4).all()


def test_keeping_all_tokens_equals_dense_in_value_and_gradient():
    teacher = logits(1)
    values, gradients = [], []
    for loss_of in (lambda s: dense_kl(s, teacher), lambda s: top_k_kl(s, *kept(teacher, N_VOCAB))):
        student = logits(2).requires_grad_()
        loss = loss_of(student).sum()
        loss.backward()
        values.append(loss.item())
        gradients.append(student.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_float16_labels_change_little():
    teacher, student = logits(3), logits(4)
    ids, values, rest = kept(teacher, 4)
    exact = top_k_kl(student, ids, values, rest)
    rounded = top_k_kl(student, ids, values.half(), rest.half())
    torch.testing.assert_close(exact, rounded, atol=5e-3, rtol=5e-3)


def test_a_certain_student_gives_finite_gradients():
    student = torch.zeros(1, N_VOCAB)
    student[0, 0] = 80.0
    student.requires_grad_()
    teacher = torch.zeros(1, N_VOCAB)
    teacher[0, 0] = 20.0
    top_k_kl(student, *kept(teacher, 2)).sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
