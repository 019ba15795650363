import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from askd_ray.errors import AskdError
from askd_ray.evaluation.seeds import compare_seeds

WERS = {"kd": [0.20, 0.22, 0.21, 0.19], "askd": [0.18, 0.21, 0.19, 0.195]}


def test_by_hand():
    found = compare_seeds({"kd": [0.1, 0.3], "askd": [0.1, 0.2]}, "kd")
    kd, difference = found["presets"]["kd"], found["differences"]["askd"]
    assert kd["wers"] == [0.1, 0.3]
    assert (kd["mean"], kd["std"]) == (pytest.approx(0.2), pytest.approx(0.02**0.5))
    assert kd["ci95"] == pytest.approx([0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1], abs=1e-4)  # t of one degree of freedom
    assert difference["value"] == pytest.approx(-0.05)
    assert difference["p_t"] == pytest.approx(0.5)  # t = 1 with one degree of freedom: a quarter in either tail
    assert difference["p_sign_flip"] == 1.0  # of 0 and -0.1, every choice of signs is as far from 0
    assert list(found["differences"]) == ["askd"]
    json.dumps(found, allow_nan=False)


def test_against_scipy():
    found = compare_seeds(WERS, "kd")
    t = stats.ttest_rel(WERS["askd"], WERS["kd"])
    difference = found["differences"]["askd"]
    assert difference["p_t"] == pytest.approx(t.pvalue)
    assert difference["ci95"] == pytest.approx(list(t.confidence_interval(0.95)))
    alone = stats.ttest_1samp(WERS["askd"], 0.0)
    assert found["presets"]["askd"]["ci95"] == pytest.approx(list(alone.confidence_interval(0.95)))


def test_against_one_number():
    found = compare_seeds(WERS, 0.205)
    assert set(found["differences"]) == set(WERS) and found["against"] == 0.205
    t = stats.ttest_1samp(WERS["askd"], 0.205)
    assert found["differences"]["askd"]["p_t"] == pytest.approx(t.pvalue)
    assert found["differences"]["askd"]["value"] == pytest.approx(np.mean(WERS["askd"]) - 0.205)


@pytest.mark.parametrize(("n", "lowest"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_how_small_the_permutation_test_can_get(n: int, lowest: float):
    found = compare_seeds({"kd": [0.3] * n, "askd": [0.1 + 0.001 * i for i in range(n)]}, "kd")
    assert found["differences"]["askd"]["p_sign_flip"] == lowest


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7))
def test_the_permutation_test_against_all_signs(differences: list[int]):
    n = len(differences)
    flipped = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=n)]
    expected = np.mean([f >= abs(sum(differences)) for f in flipped])
    found = compare_seeds({"base": [0.5] * n, "ours": [0.5 + d / 100 for d in differences]}, "base")
    assert found["differences"]["ours"]["p_sign_flip"] == pytest.approx(expected)


def test_what_does_not_vary_has_no_t_test():
    found = compare_seeds({"kd": [0.2, 0.21, 0.19], "same": [0.2, 0.21, 0.19], "less": [0.1, 0.11, 0.09]}, "kd")
    same, less = found["differences"]["same"], found["differences"]["less"]
    assert same == {"value": 0.0, "ci95": [0.0, 0.0], "p_t": None, "p_sign_flip": 1.0}
    assert less["p_t"] is None and less["p_sign_flip"] == 0.25


def test_one_seed_says_little():
    found = compare_seeds({"kd": [0.2], "askd": [0.1]}, "kd")
    assert found["presets"]["askd"] == {"wers": [0.1], "mean": 0.1, "std": None, "ci95": None}
    assert found["differences"]["askd"] == {"value": pytest.approx(-0.1), "ci95": None, "p_t": None, "p_sign_flip": 1.0}


@pytest.mark.parametrize(
    ("wers", "against", "trouble"),
    [
        (WERS, "ce", "'ce' is not among the presets: kd, askd"),
        ({"kd": [0.1, 0.2], "askd": [0.1]}, "kd", "askd has 1 runs and kd has 2"),
        ({"kd": []}, 0.1, "kd has no runs"),
    ],
)
def test_what_cannot_be_compared(wers: dict[str, list[float]], against: str | float, trouble: str):
    with pytest.raises(AskdError, match=trouble):
        compare_seeds(wers, against)
