import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from askd_ray.evaluation import significance
from askd_ray.evaluation.significance import compare, draw, verdict

MODELS = ["base", "ours"]


def compared(errors: list[tuple[int, int]], words: list[int], seed: int = 0):
    """Compare ``ours`` with ``base`` on one set: errors of both by utterance."""
    return compare(draw(np.asarray(errors), np.asarray(words), seed).rates, MODELS, "base")


def test_no_errors_and_all_errors_leave_no_doubt():
    found = compared([(4, 0), (2, 0), (4, 0), (6, 0)], [4, 2, 4, 6])
    assert found["models"] == {
        "base": {"wer": 1.0, "wer_ci95": [1.0, 1.0]},
        "ours": {"wer": 0.0, "wer_ci95": [0.0, 0.0]},
    }
    assert found["against_baseline"] == {"ours": {"value": -1.0, "low": -1.0, "high": -1.0, "p_improvement": 1.0}}


def test_errors_are_summed_before_they_are_divided():
    found = compared([(1, 0), (1, 0), (0, 0)], [4, 2, 10])
    assert found["models"]["base"]["wer"] == 2 / 16
    low, high = found["models"]["base"]["wer_ci95"]
    assert (low, high) == (0.0, 0.5)  # three times the last clip, three times the second: 1/27 of the draws each
    difference = found["against_baseline"]["ours"]
    assert difference["value"] == -2 / 16
    assert (difference["low"], difference["high"]) == (-high, -low)


def test_a_model_against_itself_is_nothing():
    difference = compared([(1, 1), (0, 0), (3, 3)], [4, 2, 4])["against_baseline"]["ours"]
    assert difference == {"value": 0.0, "low": 0.0, "high": 0.0, "p_improvement": 0.0}
    assert verdict(difference) == "cannot tell"


def test_an_interval_of_hand_made_draws():
    # Two clips of one word, one wrong in the baseline: a draw of two holds it 0, 1 or 2 times (1/4, 1/2, 1/4).
    difference = compared([(0, 0), (1, 0)], [1, 1])["against_baseline"]["ours"]
    assert (difference["value"], difference["low"], difference["high"]) == (-0.5, -1.0, 0.0)
    assert difference["p_improvement"] == pytest.approx(0.75, abs=0.02)


def test_the_draws_are_those_of_the_multinomial():
    # How often each of three clips is drawn can be read from their errors: 1, 10 and 100.
    drawn = draw(np.asarray([[1], [10], [100]]), np.asarray([1, 1, 1]), 5)
    assert drawn.errors[0, 0] == 111 and (drawn.words == 3).all()
    times = np.stack([drawn.errors[1:, 0] // 10**k % 10 for k in range(3)])
    assert (times.sum(axis=0) == 3).all() and times.shape == (3, significance.N_DRAWS)
    probability = stats.multinomial(3, [1 / 3] * 3)
    for outcome in ((3, 0, 0), (0, 2, 1), (1, 1, 1)):
        share = (times == np.asarray(outcome)[:, None]).all(axis=0).mean()
        assert share == pytest.approx(probability.pmf(outcome), abs=0.012)


def test_chunks_change_nothing_but_the_numbers_drawn(monkeypatch: pytest.MonkeyPatch):
    errors, words = np.asarray([[1, 0], [0, 2], [3, 1]]), np.asarray([4, 5, 6])
    monkeypatch.setattr(significance, "_CHUNK", 7)  # two draws at a time
    drawn = draw(errors, words, 0)
    assert drawn.errors.shape == (1 + significance.N_DRAWS, 2)
    assert drawn.rates.std(axis=0) == pytest.approx(draw(errors, words, 1).rates.std(axis=0), rel=0.05)


RNG_SEED = 11


@pytest.fixture(scope="module")
def spoken() -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """References, a baseline with a tenth of the words wrong, and a model with a little less: 80 utterances."""
    rng = np.random.default_rng(RNG_SEED)
    references = [[f"w{w}" for w in rng.integers(50, size=rng.integers(1, 15))] for _ in range(80)]

    def make_hypotheses(share: float) -> list[list[str]]:
        return [[w if rng.random() > share else "x" for w in r] for r in references]

    return references, make_hypotheses(0.12), make_hypotheses(0.09)


def errors_of(references: list[list[str]], *hypotheses: list[list[str]]) -> np.ndarray:
    return np.asarray(
        [[kaldialign.edit_distance(r, h)["total"] for h in of] for r, *of in zip(references, *hypotheses, strict=True)]
    )


def test_against_kaldialign(spoken: tuple[list[list[str]], ...]):
    references, base, ours = spoken
    found = compared(errors_of(*spoken), [len(r) for r in references])
    other = kaldialign.bootstrap_wer_ci(references, base, ours, replications=10_000)
    for name, system in (("base", "system1"), ("ours", "system2")):
        mirror, interval = other[system], found["models"][name]["wer_ci95"]
        assert found["models"][name]["wer"] == pytest.approx(mirror["wer"], abs=0.001)  # the mean of its draws
        assert interval == pytest.approx([mirror["ci95min"], mirror["ci95max"]], abs=0.005)  # a normal interval
    assert found["against_baseline"]["ours"]["p_improvement"] == pytest.approx(other["p_s2_improv_over_s1"], abs=0.02)


def test_against_scipy(spoken: tuple[list[list[str]], ...]):
    errors, words = errors_of(*spoken), np.asarray([len(r) for r in spoken[0]])
    difference = compared(errors, words)["against_baseline"]["ours"]
    other = stats.bootstrap(
        (errors[:, 1] - errors[:, 0], words),
        lambda extra, n, axis: extra.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=1,
    )
    assert [difference["low"], difference["high"]] == pytest.approx(list(other.confidence_interval), abs=0.003)


def test_pool_and_mean_of_sets_against_a_plain_loop():
    a = np.asarray([[3, 1], [0, 1], [1, 0], [2, 0]]), np.asarray([5, 4, 6, 7])
    b = np.asarray([[0, 3], [9, 4]]), np.asarray([30, 12])
    drawn = [draw(*of, seed) for seed, of in enumerate((a, b))]
    pooled = compare((drawn[0] + drawn[1]).rates, MODELS, "base")
    macro = compare((drawn[0].rates + drawn[1].rates) / 2, MODELS, "base")
    assert pooled["models"]["base"]["wer"] == 15 / 64 and macro["models"]["base"]["wer"] == (6 / 22 + 9 / 42) / 2

    rng, loops = np.random.default_rng(9), {"pooled": [], "macro": []}
    for _ in range(10_000):
        picks = [rng.integers(len(words), size=len(words)) for _, words in (a, b)]
        extra = [int((errors[at, 1] - errors[at, 0]).sum()) for (errors, _), at in zip((a, b), picks, strict=True)]
        words = [int(of[at].sum()) for (_, of), at in zip((a, b), picks, strict=True)]
        loops["pooled"].append(sum(extra) / sum(words))
        loops["macro"].append((extra[0] / words[0] + extra[1] / words[1]) / 2)
    for found, loop in ((pooled, loops["pooled"]), (macro, loops["macro"])):
        difference = found["against_baseline"]["ours"]
        expected = [*np.percentile(loop, [2.5, 97.5]), np.mean(np.asarray(loop) < 0)]
        assert [difference[k] for k in ("low", "high", "p_improvement")] == pytest.approx(expected, abs=0.015)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=8))
def test_an_interval_lies_within_its_utterances(clips: list[tuple[int, int, int]]):
    found = compared([(a, b) for a, b, _ in clips], [n for *_, n in clips])
    for i, name in enumerate(MODELS):
        each = [clip[i] / clip[2] for clip in clips]
        low, high = found["models"][name]["wer_ci95"]
        assert min(each) - 1e-12 <= low <= high <= max(each) + 1e-12
    mirrored = compare(
        draw(np.asarray([(b, a) for a, b, _ in clips]), np.asarray([n for *_, n in clips]), 0).rates, MODELS, "base"
    )
    ours, mirror = found["against_baseline"]["ours"], mirrored["against_baseline"]["ours"]
    assert (ours["low"], ours["high"], ours["value"]) == pytest.approx(
        (-mirror["high"], -mirror["low"], -mirror["value"])
    )
    assert ours["p_improvement"] + mirror["p_improvement"] <= 1.0


def test_samples_without_a_word_have_no_rate():
    # One clip of a word, one of none: an inserted word in a sample of the second alone counts as one error a word.
    drawn = draw(np.asarray([[0], [1]]), np.asarray([1, 0]), 0)
    assert drawn.rates.max() == 2.0 and np.isfinite(drawn.rates).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.02, -0.01, "yes"), (0.01, 0.02, "no"), (-0.01, 0.01, "cannot tell"), (-0.01, 0.0, "cannot tell")],
)
def test_verdicts(low: float, high: float, expected: str):
    assert verdict({"value": 0.0, "low": low, "high": high, "p_improvement": 0.5}) == expected
