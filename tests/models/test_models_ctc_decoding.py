"""CTC decoding against brute force over all paths, and its invariants."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.models.ctc_decoding import beam_classes, greedy_classes, sequence_log_probs
from askd_ray.text.ctc_alignment import Classes, LogProbs, class_spans, greedy_path
from askd_ray.text.units import BLANK


def random_log_probs(seed: int, n_positions: int, n_classes: int, sharpness: float = 2.0) -> LogProbs:
    logits = sharpness * np.random.default_rng(seed).standard_normal((n_positions, n_classes))
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def log_probs_of(path: str, classes: str = "-abc", prob: float = 0.9) -> LogProbs:
    """Return log-probabilities in which each letter of a path has ``prob``, and the others share the rest."""
    table = np.full((len(path), len(classes)), (1 - prob) / (len(classes) - 1))
    table[np.arange(len(path)), [classes.index(letter) for letter in path]] = prob
    return np.log(table).astype(np.float32)


def collapse(path: tuple[int, ...]) -> Classes:
    return tuple(c for c, _ in itertools.groupby(path) if c != BLANK)


def brute_force(log_probs: LogProbs) -> dict[Classes, float]:
    """Return the log-probability of every class sequence, from all paths."""
    totals: dict[Classes, float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        totals[collapse(path)] += math.exp(sum(float(row[c]) for row, c in zip(log_probs, path, strict=True)))
    return {classes: math.log(total) for classes, total in totals.items()}


@pytest.mark.parametrize("seed", range(8))
def test_wide_beam_is_exact(seed: int):
    log_probs = random_log_probs(seed, n_positions=6, n_classes=3, sharpness=0.5 + seed / 4)
    exact = brute_force(log_probs)
    best = max(exact, key=exact.__getitem__)
    found = beam_classes(log_probs, beam_size=1000, min_log_prob=-math.inf)
    assert exact[found] == pytest.approx(exact[best], abs=1e-5)
    assert sequence_log_probs(log_probs, list(exact)) == pytest.approx(list(exact.values()), abs=1e-4)
    assert sum(math.exp(p) for p in sequence_log_probs(log_probs, list(exact))) == pytest.approx(1.0, abs=1e-5)


def test_beam_finds_what_the_greedy_path_misses():
    """Blank is the best class of both positions (0.36 in all), but "a" has three paths (0.64)."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert greedy_classes(log_probs) == ()
    assert beam_classes(log_probs, beam_size=2) == (1,)
    assert [math.exp(p) for p in sequence_log_probs(log_probs, [(), (1,), (1, 1)])] == pytest.approx([0.36, 0.64, 0.0])


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", ()), ("---", ()), ("aab", (1, 2)), ("a-a", (1, 1)), ("-aa-abb-", (1, 1, 2)), ("abab", (1, 2, 1, 2))],
)
def test_repetitions_collapse_and_blanks_are_removed(path: str, expected: Classes):
    log_probs = log_probs_of(path)
    assert greedy_classes(log_probs) == beam_classes(log_probs, 4) == expected


@pytest.mark.parametrize("seed", range(8))
def test_spans_are_those_of_the_best_path(seed: int):
    log_probs = random_log_probs(seed, n_positions=6, n_classes=3, sharpness=1.0)
    paths = list(itertools.product(range(3), repeat=6))
    for classes in [(1,), (1, 1), (2, 1, 2)]:
        spans = class_spans(log_probs, classes)
        writing = [path for path in paths if collapse(path) == classes]
        score = {path: sum(float(r[c]) for r, c in zip(log_probs, path, strict=True)) for path in writing}
        best = max(score, key=score.__getitem__)
        runs = [(c, [i for i, _ in run]) for c, run in itertools.groupby(enumerate(best), key=lambda pair: pair[1])]
        runs = [(c, positions) for c, positions in runs if c != BLANK]
        assert spans.starts == tuple(positions[0] for _, positions in runs)
        assert spans.end == runs[-1][1][-1] + 1
        assert spans.probs == pytest.approx([math.exp(max(log_probs[i, c] for i in at)) for c, at in runs])


def test_spans_of_the_greedy_path():
    spans = class_spans(log_probs_of("--aa-b--"), (1, 2))
    assert (spans.starts, spans.end) == ((2, 5), 6)
    assert spans.probs == pytest.approx([0.9, 0.9])
    assert class_spans(log_probs_of("----"), ()) == class_spans(log_probs_of(""), ())


def test_sequence_without_room_is_impossible():
    assert sequence_log_probs(log_probs_of("aa"), [(1, 1)]) == [-math.inf]  # a blank must stand between
    assert sequence_log_probs(log_probs_of(""), [(), (1,)]) == [0.0, -math.inf]
    with pytest.raises(ValueError, match="2 classes do not fit into 2 positions"):
        class_spans(log_probs_of("aa"), (1, 1))


def test_repeated_ngrams_are_refused():
    log_probs = log_probs_of("abcabc", prob=0.6)
    assert beam_classes(log_probs, 8) == (1, 2, 3, 1, 2, 3)
    once = beam_classes(log_probs, 8, no_repeat_ngram_size=3)
    assert once != (1, 2, 3, 1, 2, 3) and len(once) >= 4
    assert len({once[i : i + 3] for i in range(len(once) - 2)}) == len(once) - 2
    assert beam_classes(log_probs, 1, no_repeat_ngram_size=6) == (1, 2, 3, 1, 2, 3)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n_positions=st.integers(0, 12),
    n_classes=st.integers(2, 60),
    sharpness=st.floats(0.1, 8.0),
    beam_size=st.integers(1, 6),
)
def test_beam_is_never_less_probable_than_greedy(
    seed: int, n_positions: int, n_classes: int, sharpness: float, beam_size: int
):
    log_probs = random_log_probs(seed, n_positions, n_classes, sharpness)
    greedy, beam = greedy_classes(log_probs), beam_classes(log_probs, beam_size)
    of_greedy, of_beam = sequence_log_probs(log_probs, [greedy, beam])
    assert of_greedy - 1e-6 <= of_beam <= 1e-6
    best_path = float(log_probs.max(axis=-1).sum()) if n_positions else 0.0
    assert best_path <= of_greedy + 1e-4  # one path of the sequence
    assert collapse(tuple(greedy_path(log_probs).tolist())) == greedy
    for classes in (greedy, beam):
        spans = class_spans(log_probs, classes)
        assert len(spans.starts) == len(spans.probs) == len(classes)
        assert list(spans.starts) == sorted(set(spans.starts)) and spans.end <= n_positions
        assert all(0.0 < prob <= 1.0 for prob in spans.probs)
