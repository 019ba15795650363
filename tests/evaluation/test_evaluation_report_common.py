from dataclasses import replace

import pytest
from hypothesis_rows import make_row, make_rows

from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import CLEAN, Hypothesis
from askd_ray.evaluation.report.common import merge_runs


def run_of(student: str, teacher: str = "one two", **fields: object) -> list[Hypothesis]:
    """Two clips of the set ``a``, one of which the student hears as it says."""
    texts = {"one two": {"teacher": teacher, "student": student}, "three": {"teacher": "three", "student": "three"}}
    return make_rows(texts, **fields)


def test_students_stand_beside_one_another_and_the_teacher_once():
    merged = merge_runs({"first": run_of("one"), "second": run_of("two")})
    assert {row.model for row in merged.rows} == {"teacher", "first", "second"}
    assert len(merged.rows) == 3 * 2
    hypotheses = {(row.model, row.id): row.hypothesis for row in merged.rows}
    assert (hypotheses["first", "one two"], hypotheses["second", "one two"]) == ("one", "two")
    assert merged.names["second", "student"] == "second" and merged.left_out == ()


def test_teachers_that_differ_are_two_models():
    merged = merge_runs({"first": run_of("one"), "second": run_of("two", teacher="one too")})
    assert {row.model for row in merged.rows} == {"teacher of first", "teacher of second", "first", "second"}


def test_only_what_all_have_is_compared():
    first = [*run_of("one"), *run_of("one", set="b"), *run_of("one", condition="white@0")]
    second = [*run_of("two"), *run_of("two", set="b")[:2], *run_of("two", set="c", condition="white@0")]
    merged = merge_runs({"first": first, "second": second})
    assert {(row.set, row.condition) for row in merged.rows} == {("a", CLEAN)}
    assert merged.left_out == ("a, white@0", "b, clean", "c, white@0")
    other_reference = [replace(row, reference="one two three") for row in run_of("two")]
    with pytest.raises(AskdError, match=r"no set in common.*first has a; second has a"):
        merge_runs({"first": run_of("one"), "second": other_reference})


def test_a_condition_without_its_clean_set_is_left_out():
    noisy = {"condition": "white@0", "set": "b"}
    first = [*run_of("one"), *run_of("one", **noisy), *run_of("one", set="b")]
    second = [*run_of("two"), *run_of("two", **noisy)]
    merged = merge_runs({"first": first, "second": second})
    assert {(row.set, row.condition) for row in merged.rows} == {("a", CLEAN)}


def test_a_run_named_like_a_model():
    with pytest.raises(AskdError, match="the run teacher has the same name as a model"):
        merge_runs({"teacher": run_of("one"), "second": run_of("two")})
    with pytest.raises(AskdError, match="no set in common"):
        merge_runs(
            {"first": run_of("one"), "second": [make_row("student", "", "", set="non_speech", condition="noise")]}
        )
