import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.config.objective import Divergence, JsdDivergence, KlDivergence, Objective
from askd_ray.config.variants import Variants
from askd_ray.divergence.buckets import clamp_to_finite, to_buckets
from askd_ray.divergence.kinds import DIVERGENCES, divergence, forward_kl, jensen_shannon, reverse_kl

N_VOCAB = 13
ALL_KINDS = [
    KlDivergence(),
    KlDivergence(kind="reverse_kl"),
    JsdDivergence(),
    JsdDivergence(beta=0.1),
]


def log_probs(seed: int, n: int = 5, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(n, N_VOCAB, generator=generator) * spread, -1)


def buckets(log_p: torch.Tensor, log_q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = log_p.topk(k, -1).indices
    return to_buckets(log_p, ids), to_buckets(log_q, ids)


def test_divergences_of_known_distributions():
    p, q = torch.log(torch.tensor([[0.75, 0.25]])), torch.log(torch.tensor([[0.5, 0.5]]))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    m = [0.625, 0.375]
    jsd = 0.5 * (0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1])) + 0.5 * (
        0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    )
    assert forward_kl(p, q).item() == pytest.approx(kl, abs=1e-6)
    assert reverse_kl(p, q).item() == pytest.approx(reverse, abs=1e-6)
    assert jensen_shannon(p, q, 0.5).item() == pytest.approx(jsd, abs=1e-6)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=repr)
@pytest.mark.parametrize("k", [4, N_VOCAB, None])
def test_identical_distributions_have_no_divergence_and_no_gradient(kind: Divergence, k: int | None):
    distribution = log_probs(0)
    logits = distribution.clone().requires_grad_()
    log_q = torch.log_softmax(logits, -1)
    pair = (distribution, log_q) if k is None else buckets(distribution, log_q, k)
    loss = divergence(kind, *pair).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert logits.grad is not None and logits.grad.abs().max().item() < 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, N_VOCAB - 1), st.sampled_from(ALL_KINDS))
def test_top_k_is_a_lower_bound_of_the_dense_divergence(seed: int, k: int, kind: Divergence):
    log_p, log_q = log_probs(seed), log_probs(seed + 1)
    bound = divergence(kind, *buckets(log_p, log_q, k))
    assert (bound >= -1e-5).all()
    assert (bound <= divergence(kind, log_p, log_q) + 1e-4).all()


@pytest.mark.parametrize("kind", ALL_KINDS, ids=repr)
def test_top_k_of_all_tokens_equals_dense(kind: Divergence):
    log_p = log_probs(1)
    values, gradients = [], []
    for k in (None, N_VOCAB):
        student = log_probs(2).requires_grad_()
        log_q = torch.log_softmax(student, -1)
        loss = divergence(kind, *((log_p, log_q) if k is None else buckets(log_p, log_q, k))).sum()
        loss.backward()
        values.append(loss.item())
        gradients.append(student.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_the_jensen_shannon_divergence_is_bounded_and_symmetric_at_one_half(seed: int, beta: float):
    p, q = log_probs(seed, spread=8.0), log_probs(seed + 1, spread=8.0)
    assert (jensen_shannon(p, q, beta) <= math.log(2) + 1e-5).all()
    torch.testing.assert_close(jensen_shannon(p, q, 0.5), jensen_shannon(q, p, 0.5), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(jensen_shannon(p, q, beta), jensen_shannon(q, p, 1.0 - beta), atol=1e-5, rtol=1e-4)


def test_float16_labels_change_little():
    p, q = buckets(log_probs(3), log_probs(4), 4)
    rounded = clamp_to_finite(p.half().float().log_softmax(-1))
    torch.testing.assert_close(forward_kl(p, q), forward_kl(rounded, q), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=repr)
def test_certain_student_has_finite_gradients(kind: Divergence):
    student = torch.zeros(1, N_VOCAB)
    student[0, 0] = 80.0
    student.requires_grad_()
    teacher = torch.zeros(1, N_VOCAB)
    teacher[0, 0] = 20.0
    pair = buckets(torch.log_softmax(teacher, -1), torch.log_softmax(student, -1), 2)
    divergence(kind, *pair).sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_every_divergence_is_a_recipe_value():
    variants = Variants.of(Objective.model_fields["divergence"])
    assert variants is not None and variants.sections.keys() == DIVERGENCES.keys()
