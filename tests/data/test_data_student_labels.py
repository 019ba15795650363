"""The teacher's labels in the tokens of a student: nothing is lost, and probabilities still sum to 1."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import Model, clip, label_of

from askd_ray.data.labels import SoftLabels
from askd_ray.data.student_labels import labels_of_student
from askd_ray.divergence.buckets import to_buckets
from askd_ray.divergence.kinds import DIVERGENCES
from askd_ray.errors import AskdError
from askd_ray.objective.references import TopK
from askd_ray.text.vocabulary import PrunedVocabulary, TokenMap, choose_tokens

N_VOCAB, K = 51_864, 8


@pytest.fixture(scope="module")
def vocabulary(tiny_en: Model) -> PrunedVocabulary:
    return choose_tokens(tiny_en[1], (), (), 600)


@pytest.fixture(scope="module")
def token_map(vocabulary: PrunedVocabulary) -> TokenMap:
    return vocabulary.token_map(N_VOCAB)


def labels(target_ids: list[int], seed: int = 0, nearby: int = N_VOCAB) -> SoftLabels:
    """Random soft labels along some targets; their top tokens are among the first ``nearby``."""
    rng, n = np.random.default_rng(seed), len(target_ids)
    top_ids = np.array([rng.choice(nearby, K, replace=False) for _ in range(n)]).reshape(n, K)
    log_probs = np.log(rng.dirichlet(np.ones(K + 1), n)).reshape(n, K + 1).clip(-60)
    return replace(
        label_of(clip(1, "x", "train")),
        target_ids=np.array(target_ids, np.int32),
        top_ids=top_ids.astype(np.uint16),
        top_log_probs=log_probs[:, :-1].astype(np.float16),
        rest_log_prob=log_probs[:, -1].astype(np.float16),
        token_loss=rng.random(n).astype(np.float16),
        states=rng.random((n, 1, 4)).astype(np.float16),
    )


def reference(label: SoftLabels) -> TopK:
    arrays = (label.top_ids.astype(np.int64), label.top_log_probs, label.rest_log_prob, label.token_loss)
    return TopK(*(torch.from_numpy(a).float() if i else torch.from_numpy(a) for i, a in enumerate(arrays)))


TARGETS = st.lists(st.integers(0, N_VOCAB - 1), max_size=6)


@settings(deadline=None)
@given(target_ids=TARGETS, seed=st.integers(0, 99), nearby=st.sampled_from((K, 700, N_VOCAB)))
def test_probabilities_go_to_first_pieces(
    vocabulary: PrunedVocabulary, token_map: TokenMap, target_ids: list[int], seed: int, nearby: int
):
    label = labels(target_ids, seed, nearby)
    found = labels_of_student(label, "u", token_map)
    assert found.continues is not None
    assert found.taught.sum() == len(target_ids) and found.teacher_loss == pytest.approx(label.teacher_loss)
    assert found.target_ids.tolist() == token_map.split(target_ids)[0].tolist()
    whole = np.flatnonzero(found.taught)
    assert np.array_equal(found.states[whole], label.states) and not found.states[found.continues].any()
    for n, row in enumerate(whole):
        expected: dict[int, float] = {}
        for token, log_p in zip(label.top_ids[n].tolist(), label.top_log_probs[n].tolist(), strict=True):
            piece = int(token_map.first(np.array(token)))
            expected[piece] = expected.get(piece, 0.0) + np.exp(log_p)
        got: dict[int, float] = {}
        for token, log_p in zip(found.top_ids[row].tolist(), found.top_log_probs[row].tolist(), strict=True):
            got[token] = got.get(token, 0.0) + np.exp(log_p)
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-9)
        total = sum(got.values()) + np.exp(np.float64(found.rest_log_prob[row]))
        assert total == pytest.approx(1.0, abs=0.01)  # float16


@settings(deadline=None)
@given(seed=st.integers(0, 99), kind=st.sampled_from(sorted(DIVERGENCES)))
def test_a_divergence_over_joined_slots_is_that_of_the_distributions(token_map: TokenMap, seed: int, kind: str):
    """Of the student's distribution over its tokens, and the teacher's moved to them by hand."""
    found = labels_of_student(labels([1, 2, 3], seed), "u", token_map)
    n_student = int(token_map.pieces.max()) + 1
    log_q = torch.randn(3, n_student, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1)
    top = reference(found)
    of_labels = top.distribution(slice(0, 3), torch.zeros(3), 1.0)
    parameters = {"beta": 0.3} if kind == "jsd" else {}
    value = DIVERGENCES[kind](of_labels.log_p.double(), of_labels.of_student(log_q), **parameters)
    assert torch.allclose(of_labels.log_p.exp().sum(-1), torch.ones(3), atol=1e-5)
    for n in range(3):
        slots = {i: p for i, p in zip(top.ids[n].tolist(), of_labels.log_p[n].exp().tolist(), strict=False) if p > 0.0}
        ids = torch.tensor([list(slots)])
        log_p = torch.tensor([[*slots.values(), of_labels.log_p[n, -1].exp().item()]]).double().log()
        expected = DIVERGENCES[kind](log_p, to_buckets(log_q[n : n + 1], ids), **parameters)
        assert value[n].item() == pytest.approx(expected.item(), rel=1e-5)
        assert value[n].item() >= 0.0


def test_labels_whose_tokens_are_kept_only_get_new_ids(vocabulary: PrunedVocabulary, token_map: TokenMap):
    label = labels([40, 50, 50_256], nearby=500)
    found = labels_of_student(label, "u", token_map)
    assert found.target_ids.tolist() == [40, 50, 600]
    assert found.prompt_ids == label.prompt_ids and found.taught.all()
    for name in ("top_ids", "top_log_probs", "rest_log_prob", "token_loss", "states"):
        assert np.array_equal(getattr(found, name), getattr(label, name))


def test_labels_of_an_online_teacher_have_targets_only(token_map: TokenMap):
    label = replace(
        labels([1, 49_999]), top_ids=np.zeros((2, 0), np.uint16), top_log_probs=np.zeros((2, 0), np.float16)
    )
    found = labels_of_student(label, "u", token_map)
    assert found.top_ids.shape == (len(found.target_ids), 0) and len(found.target_ids) > 2


def test_targets_that_become_too_long_are_refused(token_map: TokenMap):
    with pytest.raises(AskdError, match=r"utterance u: its prompt and targets have .* raise student.vocabulary.keep"):
        labels_of_student(labels([49_999] * 440), "u", token_map)
