import pytest

from askd_ray.evaluate.significance import wer_difference, wer_interval

REFERENCES = ["a b c d", "e f", "g h i j", "k l m n o p"]  # 16 words
PERFECT = list(REFERENCES)
TWO_WRONG = ["a b c x", "e f", "g h i", "k l m n o p"]  # a substitution and a deletion


def test_no_errors_leave_no_doubt():
    assert wer_interval(REFERENCES, PERFECT) == (0.0, 0.0)


def test_all_wrong_leaves_no_doubt():
    assert wer_interval(REFERENCES, ["", "", "", ""]) == (1.0, 1.0)


def test_interval_holds_the_rate_and_stays_above_zero():
    low, high = wer_interval(REFERENCES, TWO_WRONG)
    assert 0.0 <= low < 2 / 16 < high < 0.5


def test_difference_to_itself_is_nothing():
    assert wer_difference(REFERENCES, TWO_WRONG, TWO_WRONG) == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p_improvement": 0.0,
    }


def test_a_certain_improvement():
    references, baseline = ["a b"] * 20, ["a x"] * 20
    found = wer_difference(references, references, baseline)
    assert found == {"value": -0.5, "low": -0.5, "high": -0.5, "p_improvement": 1.0}


def test_difference_counts_words_over_the_whole_set():
    found = wer_difference(REFERENCES, PERFECT, TWO_WRONG)
    assert found["value"] == pytest.approx(-2 / 16)
    assert found["low"] < found["value"] < found["high"] <= 0.0
    # worse where it was better: the same interval, mirrored
    mirrored = wer_difference(REFERENCES, TWO_WRONG, PERFECT)
    assert (mirrored["low"], mirrored["high"]) == (-found["high"], -found["low"])
    assert mirrored["p_improvement"] == 0.0 and found["p_improvement"] > 0.9


def test_an_interval_of_hand_made_draws():
    # Two clips of one word, one wrong in the baseline: a draw of two holds it 0, 1 or 2 times (1/4, 1/2, 1/4).
    found = wer_difference(["a", "b"], ["a", "b"], ["a", "x"])
    assert (found["value"], found["low"], found["high"]) == (-0.5, -1.0, 0.0)
    assert found["p_improvement"] == pytest.approx(0.75, abs=0.02)
