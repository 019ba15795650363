"""CTC in the objective: token losses and positions against all paths of small vocabularies, labels in classes."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import with_objective
from tiny_run import Model

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import empty_batch
from askd_ray.data.schema import Batch
from askd_ray.divergence.kinds import forward_kl
from askd_ray.objective.ctc import CtcTargets, ctc_token_losses, token_positions
from askd_ray.objective.references import TopK, UnitLabels
from askd_ray.objective.tensors import TensorBatch
from askd_ray.text.units import BLANK, CtcVocabulary, Segmenter

CPU = torch.device("cpu")
END = 5
UNITS = {0: (1,), 1: (2,), 2: (3, 1)}


class UnitsOfThreeTokens(Segmenter):
    def __init__(self) -> None:
        self.first = [1, 2, 3, 1, BLANK, BLANK]  # the end token has none, and 4 is another special one

    def classes(self, token: int) -> tuple[int, ...]:
        return UNITS[token]


SEGMENTER = UnitsOfThreeTokens()


def batch_of(texts: list[list[int]]) -> TensorBatch:
    """A batch of texts, each with its end token."""
    targets = [[*text, END] for text in texts]
    lengths = [len(t) for t in targets]
    values: dict[str, Any] = vars(empty_batch(80, 1)) | {
        "ids": tuple(map(str, range(len(texts)))),
        "n_targets": np.array(lengths),
        "targets": np.concatenate(targets).astype(np.int64),
        "rows": np.repeat(np.arange(len(texts)), lengths),
    }
    return TensorBatch.of(Batch(**values), CPU)


def random_log_probs(seed: int, n_rows: int, n_positions: int) -> torch.Tensor:
    values = torch.randn(n_rows, n_positions, 4, generator=torch.Generator().manual_seed(seed))
    return (2 * values).log_softmax(-1)


def written(path: tuple[int, ...]) -> list[int]:
    return [c for c, _ in itertools.groupby(path) if c != BLANK]


def score(log_probs: torch.Tensor, path: tuple[int, ...]) -> float:
    return sum(float(log_probs[t, c]) for t, c in enumerate(path))


TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=3)


@given(TEXTS, st.integers(0, 999))
def test_losses_and_positions_are_those_of_all_paths(texts: list[list[int]], seed: int):
    lengths = [6 - row % 2 for row in range(len(texts))]
    log_probs, n_positions = random_log_probs(seed, len(texts), 6), torch.tensor(lengths)
    batch = batch_of(texts)
    targets = CtcTargets.of(batch, SEGMENTER)
    losses = ctc_token_losses(log_probs, n_positions, targets, batch).split(batch.lengths)
    positions, comparable = (t.split(batch.lengths) for t in token_positions(log_probs, n_positions, targets, batch))
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        units, of_row = [UNITS[token] for token in text], log_probs[row]
        classes = [c for of_token in units for c in of_token]
        paths = [p for p in itertools.product(range(4), repeat=n) if written(p) == classes]
        if not paths:
            assert losses[row][: len(text)].isinf().all() and not comparable[row].any()
            continue
        total = torch.tensor([score(of_row, p) for p in paths]).logsumexp(0)
        torch.testing.assert_close(losses[row].sum(), -total, atol=1e-4, rtol=1e-4)
        shares = losses[row][: len(text)]
        assert torch.equal(shares, shares[:1].expand(len(text))) and (not text or losses[row][-1] == 0.0)
        assert comparable[row].tolist() == [True] * len(text) + [False]
        best = max(paths, key=lambda p: score(of_row, p))
        runs = [list(run) for c, run in itertools.groupby(range(n), key=lambda t: best[t]) if c != BLANK]
        spikes = [max(run, key=lambda t: float(of_row[t, best[t]])) for run in runs]
        firsts = [spikes[sum(map(len, units[:n]))] for n in range(len(units))]
        assert positions[row].tolist() == [6 * row + t for t in firsts] + [6 * row]


def test_a_text_that_is_too_long_for_its_window_has_an_infinite_loss_and_no_positions():
    batch, log_probs = batch_of([[0, 0], [1]]), random_log_probs(0, 2, 2)
    targets, n_positions = CtcTargets.of(batch, SEGMENTER), torch.tensor([2, 2])
    losses = ctc_token_losses(log_probs, n_positions, targets, batch)
    assert losses[:2].isinf().all() and losses[3:].isfinite().all()
    assert token_positions(log_probs, n_positions, targets, batch)[1].tolist() == [False, False, False, True, False]


def test_a_rank_without_data_has_neither_losses_nor_positions():
    batch = TensorBatch.of(empty_batch(80, 1), CPU)
    targets, log_probs = CtcTargets.of(batch, SEGMENTER), random_log_probs(0, 1, 1)
    assert len(ctc_token_losses(log_probs, torch.tensor([1]), targets, batch)) == 0
    assert [len(t) for t in token_positions(log_probs, torch.tensor([1]), targets, batch)] == [0, 0]


@given(st.permutations(range(6)), st.integers(1, 5), st.integers(0, 99))
def test_labels_in_units_keep_all_probability(ids: list[int], k: int, seed: int):
    p = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)
    top = torch.tensor(ids[:k])
    rest = 1.0 - p[top].sum()
    tokens = TopK(top[None], p[top].log()[None], rest.log()[None], torch.zeros(1))
    labels = UnitLabels(tokens, torch.tensor(SEGMENTER.first), 4)
    distribution = labels.distribution(slice(0, 1), torch.zeros(1, dtype=torch.long), 1.0)
    by_class = [sum(p[i] for i in ids[:k] if SEGMENTER.first[i] == c) for c in range(4)]
    by_class[BLANK] += rest
    q = torch.tensor(by_class, dtype=torch.float64).clamp_min(1e-30)
    of_student = distribution.of_student(q.log()[None].float())
    assert distribution.log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert forward_kl(distribution.log_p, of_student).item() == pytest.approx(0.0, abs=1e-6)
    # What the labels do not name may be anywhere: the blank's probability moved to it changes nothing.
    unnamed = [c for c in range(1, 4) if by_class[c] == 0.0]
    if unnamed:
        q[unnamed[0]], q[BLANK] = q[BLANK] / 2, q[BLANK] / 2
        moved = distribution.of_student(q.log()[None].float())
        assert forward_kl(distribution.log_p, moved).item() == pytest.approx(0.0, abs=1e-6)


def test_tokens_are_divided_into_the_longest_units(tiny_en: Model):
    tokens = tiny_en[1]
    (the,) = tokens.encode("the")
    vocabulary = CtcVocabulary.of([the])
    assert vocabulary.n_classes == 1 + 256 + 1
    segmenter = Segmenter(vocabulary, tokens, 51864)
    text = "the other théory of 12 things, THE END"
    ids = tokens.encode(text)
    units = [c for token in ids for c in segmenter.classes(token)]
    assert len(units) > len(ids) and units[0] == vocabulary.n_classes - 1
    assert tokens.decode(vocabulary.tokens(units)) == text
    assert [segmenter.first[token] for token in ids] == [segmenter.classes(token)[0] for token in ids]
    assert segmenter.first[tokens.end] == BLANK


ALLOWED = {"objective": {"preset": "askd_ctc"}, "student": {"reader": "ctc"}}
REFUSED: dict[str, dict[str, Any]] = {
    "set student.reader=ctc or hybrid": {"student": {"reader": "whisper"}},
    "teacher.online=false": {"teacher": {"online": True, "top_k": 32}},
    "previous_epoch keeps": {"objective": {"preset": "pskd"}},
    "student.shrink needs": {"student": {"shrink": [{"at": 0.5, "encoder_layers": [0]}]}},
    "targets.timestamps are tokens of a decoder": {"targets": {"timestamps": True}},
    "decoder_layers = .* would be ignored": {"student": {"decoder_layers": [0]}},
    "prompt = 'hello' would be ignored": {"targets": {"prompt": "hello"}},
    "embedding_lr = 0.1 would be ignored": {"train": {"optimizer": {"embedding_lr": 0.1}}},
    "embeddings = 1.0 would be ignored": {"train": {"optimizer": {"frozen_until": {"embeddings": 1.0}}}},
    "decoder_states would be ignored": {"objective": {"preset": "askd_window"}, "targets": {"states": "all"}},
    "head_lr = 0.1 would be ignored": {"train": {"optimizer": {"head_lr": 0.1}}},
    "freezes encoder and decoder at the start": {
        "train": {"optimizer": {"frozen_until": {"encoder": 0.5, "decoder": 1.0}}}
    },
    "ctc_weight = 0.5 would be ignored": {"objective": {"preset": "askd", "ctc_weight": 0.5}},
    "self_kd would be ignored": {"objective": {"preset": "askd", "self_teacher": {"kind": "none"}} | {
        "intermediate": {"kind": "ctc", "self_kd": True}
    }},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_ctc_student_would_ignore_is_refused(labelled: Recipe, message: str):
    with_objective(labelled, ALLOWED["objective"], student=ALLOWED["student"])
    changes = {"student": {"reader": "ctc"}} | {k: v for k, v in REFUSED[message].items() if k != "objective"}
    changes["student"] = {"reader": "ctc"} | changes["student"]
    with pytest.raises(ValueError, match=message):
        with_objective(labelled, REFUSED[message].get("objective", ALLOWED["objective"]), **changes)


def test_intermediate_layers_need_a_ctc_head(labelled: Recipe):
    with pytest.raises(ValueError, match=r"objective\.intermediate would be ignored"):
        with_objective(labelled, {"preset": "askd", "intermediate": {"kind": "ctc"}})
