from dataclasses import replace

import pytest
from hypothesis_rows import make_row, make_rows

from askd_ray.errors import AskdError
from askd_ray.evaluation.tally import tally
from askd_ray.text.error_rate import ErrorCounts

ROWS = make_rows({"The colour!": {"kd": "the color", "teacher": "The"}, "two words": {"kd": "2 birds", "teacher": ""}})


def test_rows_are_grouped_and_counted():
    rows = [*ROWS, *(replace(row, condition="white@10", hypothesis="") for row in ROWS)]
    clean, noisy = tally(rows, "teacher", "whisper")
    assert (clean.set, clean.condition, noisy.condition, clean.in_domain) == ("a", "clean", "white@10", True)
    assert list(clean.results) == ["teacher", "kd"]  # the baseline first
    kd = clean.results["kd"]
    assert [row.id for row in kd.rows] == ["The colour!", "two words"]
    assert (kd.references, kd.hypotheses) == (("the color", "2 words"), ("the color", "2 birds"))
    assert kd.counts == (ErrorCounts(0, 0, 0, 2), ErrorCounts(1, 0, 0, 2))
    assert kd.errors.tolist() == [0, 1] and kd.words.tolist() == [2, 2]
    assert (clean.n_words, clean.minutes) == (4, 2 / 60)
    assert noisy.results["kd"].errors.tolist() == [2, 2]
    assert clean.bootstrap.errors[0].tolist() == [3, 1] and clean.bootstrap.words[0].tolist() == [4]


@pytest.mark.parametrize(("kind", "errors"), [("whisper", [1, 0]), ("basic", [1, 1]), ("none", [2, 2])])
def test_the_normaliser_decides(kind: str, errors: list[int]):
    (set_results,) = tally(
        [make_row("m", "The colour!", "the colours"), make_row("m", "two words", "2  Words")], "m", kind
    )
    assert set_results.results["m"].errors.tolist() == errors


def test_sets_are_drawn_apart():
    one, other = tally([*ROWS, *(replace(row, set="b") for row in ROWS)], "teacher", "whisper")
    assert (one.bootstrap.errors[0] == other.bootstrap.errors[0]).all()
    assert (one.bootstrap.errors != other.bootstrap.errors).any()


BROKEN = {
    "no rows": ([], "the baseline 'teacher' is not among the models: no rows"),
    "no baseline": ([row for row in ROWS if row.model == "kd"], "'teacher' is not among the models: kd"),
    "a row missing": (
        ROWS[1:],
        "kd lacks 1 of the utterances that teacher has (a, clean), such as 'The colour!'",
    ),
    "a row too many": ([*ROWS, make_row("kd", "x", "x")], "teacher lacks 1 of the utterances that kd has"),
    "a set missing": (
        [*ROWS, make_row("kd", "x", "x", set="b")],
        "teacher lacks 1 of the utterances that kd has (b,",
    ),
    "asked twice": ([*ROWS, ROWS[0]], "kd has two rows of 'The colour!' (a, clean)"),
    "another reference": ([replace(ROWS[0], reference="x"), *ROWS[1:]], "is not the same for kd as for teacher"),
    "another length": ([replace(ROWS[0], duration_s=9.0), *ROWS[1:]], "is not the same for kd as for teacher"),
    "two domains": ([*ROWS, make_row("kd", "x", "x", in_domain=False)], "a is in domain in one row and out of domain"),
    "no words": ([make_row("teacher", "(!)", "x")], "no reference has a word after normalisation (a, clean)"),
    "words in silence": ([make_row("teacher", "x", "", set="non_speech")], "the references of non_speech have words"),
}


@pytest.mark.parametrize(("rows", "trouble"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_compared(rows: list, trouble: str):
    with pytest.raises(AskdError) as caught:
        tally(rows, "teacher", "whisper")
    assert trouble in str(caught.value) and "\n" not in str(caught.value)
