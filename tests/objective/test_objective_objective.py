from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.nn import functional

from askd_ray.config.objective import Objective
from askd_ray.divergence.kinds import forward_kl
from askd_ray.objective.instance_weights import instance_weights
from askd_ray.objective.objective import PARTS, TokenBatch, objective_sums
from askd_ray.objective.references import Dense, Reference, TopK
from askd_ray.objective.schedules import Progress, Weights, weights_at

N_VOCAB, WIDTH, N = 11, 6, 7


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def top_k(log_p: torch.Tensor, k: int, targets: torch.Tensor) -> TopK:
    top = log_p.topk(k, -1)
    rest = log_p.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    return TopK(top.indices, top.values, rest, functional.nll_loss(log_p, targets, reduction="none"))


class Case:
    """A student, a teacher and a self-teacher over a small vocabulary."""

    def __init__(self, n: int = N, k: int = N_VOCAB):
        self.hidden, self.projection = random(n, WIDTH, seed=1), random(N_VOCAB, WIDTH, seed=2)
        self.targets = torch.randint(0, N_VOCAB, (n,), generator=torch.Generator().manual_seed(3))
        self.teacher_log_p = torch.log_softmax(random(n, N_VOCAB, seed=4) * 2, -1)
        self.self_teacher_log_p = torch.log_softmax(random(n, N_VOCAB, seed=5) * 2, -1)
        self.teacher = top_k(self.teacher_log_p, k, self.targets)
        self.self_teacher = top_k(self.self_teacher_log_p, k, self.targets)

    def sums(
        self,
        settings: Objective,
        weights: Weights,
        w: torch.Tensor | None = None,
        teacher: Reference | None = None,
        has_teacher: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones(len(self.targets))
        taught = ones.bool() if has_teacher is None else has_teacher
        w = ones if w is None else w
        tokens = TokenBatch(self.targets, taught, w, teacher or self.teacher, self.self_teacher)
        return objective_sums(settings, weights, tokens, (self.hidden, self.projection), lambda rows, log_q: None)

    def by_hand(self, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CE, KL(teacher), KL(self-teacher) per token; the references already have the right temperature."""
        logits = self.hidden @ self.projection.t()
        log_q = torch.log_softmax(logits / temperature, -1)
        ce = functional.cross_entropy(logits, self.targets, reduction="none")
        return ce, forward_kl(self.teacher_log_p, log_q), forward_kl(self.self_teacher_log_p, log_q)


def sums_of(preset: str, weights: Weights, **settings: Any) -> dict[str, float]:
    _, sums = Case().sums(Objective(preset=preset, **settings), weights)  # type: ignore[arg-type]
    return dict(zip(PARTS, sums.tolist(), strict=True))


def test_askd_is_the_weighted_sum_of_its_parts():
    ce, kd, self_kd = (part.sum().item() for part in Case().by_hand(2.0))
    found = sums_of("askd", Weights(0.5, 0.2, temperature=2.0))
    assert found["loss"] == pytest.approx(0.3 * ce + 0.5 * 4 * kd + 0.2 * 4 * self_kd, rel=1e-5)
    assert (found["ce"], found["kd"], found["self_kd"]) == pytest.approx((ce, 4 * kd, 4 * self_kd), rel=1e-5)


def test_distil_whisper_s_two_objectives():
    ce, kd, _ = (part.sum().item() for part in Case().by_hand(2.0))
    at = {p: weights_at(Objective(preset=f"kd_distil_whisper_{p}"), Progress(0.3, 0, 1)) for p in ("paper", "code")}  # type: ignore[arg-type]
    assert all(w.temperature == 2.0 for w in at.values())
    assert sums_of("kd_distil_whisper_paper", at["paper"])["loss"] == pytest.approx(1.0 * ce + 0.8 * kd, rel=1e-5)
    assert sums_of("kd_distil_whisper_code", at["code"])["loss"] == pytest.approx(0.8 * ce + 4.0 * kd, rel=1e-5)


def test_adakd_trades_the_task_against_the_teacher_utterance_by_utterance():
    case, settings = Case(), Objective(preset="adakd", temperature={"start": 2.0})  # type: ignore[arg-type]
    w = instance_weights(settings.instance_weights, torch.linspace(0.3, 0.7, N), 0.5, 15.0)
    ce, kd, _ = case.by_hand(2.0)
    loss, _ = case.sums(settings, weights_at(settings, Progress(0.0, 0, 1)), w)
    assert loss.item() == pytest.approx(((1 - w) * ce + w * 4 * kd).sum().item(), rel=1e-5)


def test_ps_kd_has_the_gradient_of_its_soft_targets():
    """CE against (1 - a) one_hot + a p_previous, arXiv 2006.12000."""
    case = Case()
    case.hidden.requires_grad_()
    a = 0.6
    loss, _ = case.sums(Objective(preset="pskd"), Weights(0.0, a))
    (found,) = torch.autograd.grad(loss, case.hidden)
    target = (1 - a) * functional.one_hot(case.targets, N_VOCAB) + a * case.self_teacher_log_p.exp()
    soft_ce = -(target * torch.log_softmax(case.hidden @ case.projection.t(), -1)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(soft_ce, case.hidden)[0], rtol=1e-4, atol=1e-5)


def test_a_gate_silences_the_teacher_where_it_is_wrong():
    case, p = Case(), Case().teacher.token_loss.neg().exp()
    threshold = float(p.median()) + 1e-6
    settings = Objective(trust_gate={"kind": "hard", "threshold": threshold})  # type: ignore[arg-type]
    ce, kd, _ = case.by_hand()
    loss, sums = case.sums(settings, Weights(0.5, 0.0))
    trusted = (p >= threshold).float()
    assert 0 < trusted.sum() < N
    assert loss.item() == pytest.approx((0.5 * ce + 0.5 * trusted * kd).sum().item(), rel=1e-5)
    assert dict(zip(PARTS, sums.tolist(), strict=True))["teacher_share"] == trusted.sum().item()


@pytest.mark.parametrize("ce_weight", ["complement", "instance_complement", 0.8])
def test_cross_entropy_takes_the_teacher_s_weight_where_there_is_no_teacher(ce_weight: Any):
    case, w, a, b = Case(), torch.linspace(0.2, 1.0, N), 0.5, 0.2
    has_teacher = torch.tensor([True, True, False, True, False, True, True])
    for name in ("ids", "log_probs", "rest", "token_loss"):  # as labels without a teacher hold them
        getattr(case.teacher, name)[~has_teacher] = 0
    preset = {"complement": "askd", "instance_complement": "adakd"}.get(ce_weight, "kd_distil_whisper_code")
    settings = Objective(preset=preset, temperature={"start": 2.0})  # type: ignore[arg-type]
    case.hidden.requires_grad_()
    loss, sums = case.sums(settings, Weights(a, b, temperature=2.0), w, has_teacher=has_teacher)
    ce, kd, self_kd = case.by_hand(2.0)
    total = torch.zeros(())
    for n in range(N):
        share = a * float(w[n]) if has_teacher[n] else 0.0
        c = 0.8
        if ce_weight == "complement":
            c = 1 - a - b if has_teacher[n] else 1 - b
        elif ce_weight == "instance_complement":
            c = 1 - share - b
        total = total + c * ce[n] + share * 4 * kd[n] + b * 4 * self_kd[n]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, case.hidden)[0], torch.autograd.grad(total, case.hidden)[0], rtol=1e-4, atol=1e-5
    )
    found = dict(zip(PARTS, sums.tolist(), strict=True))
    assert found["taught"] == 5
    assert found["taught_ce"] == pytest.approx(ce[has_teacher].sum().item(), rel=1e-5)
    assert found["teacher_ce"] == pytest.approx(case.teacher.token_loss[has_teacher].sum().item(), rel=1e-5)
    assert found["teacher_share"] == pytest.approx(w[has_teacher].sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_cache_of_all_tokens_equals_the_teacher_itself(kind: str):
    case = Case()
    case.hidden.requires_grad_()
    teacher = Dense(random(N, WIDTH, seed=8), random(N_VOCAB, WIDTH, seed=9))
    log_p = torch.log_softmax(teacher.hidden @ teacher.projection.t(), -1)
    settings = Objective(divergence={"kind": kind}, trust_gate={"kind": "soft"})  # type: ignore[arg-type]
    found = [case.sums(settings, Weights(0.5, 0.2), teacher=t) for t in (teacher, top_k(log_p, N_VOCAB, case.targets))]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss, case.hidden)[0] for loss, _ in found]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_without_tokens_all_is_zero_and_so_are_the_gradients():
    case = Case(n=0, k=3)
    case.hidden.requires_grad_()
    case.projection.requires_grad_()
    loss, sums = case.sums(Objective(), Weights(0.5, 0.2))
    loss.backward()
    assert sums.tolist() == [0.0] * len(PARTS)
    assert case.projection.grad is not None and not case.projection.grad.any()


def test_what_has_no_weight_is_not_computed():
    class Untouchable:
        states: Mapping[int, torch.Tensor] = MappingProxyType({})

        def distribution(self, rows: slice, targets: torch.Tensor, temperature: float) -> Any:
            raise AssertionError("asked without a weight")

    case = Case()
    ones = torch.ones(N)
    tokens = TokenBatch(case.targets, ones.bool(), ones, Untouchable(), Untouchable())
    student = (case.hidden, case.projection)
    objective_sums(Objective(), Weights(0.0, 0.0), tokens, student, lambda rows, log_q: None)
    with pytest.raises(AssertionError):
        objective_sums(Objective(), Weights(0.0, 0.1), tokens, student, lambda rows, log_q: None)
