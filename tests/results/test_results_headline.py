from dataclasses import replace

from hypothesis_rows import make_row, make_rows

from askd_ray.evaluation.scores import score
from askd_ray.results.headline import HEAD, headline

SPEECH = [
    *make_rows({"a b": {"teacher": "a b", "student": "a x"}}, ended=True),
    *make_rows({"c d": {"teacher": "c d", "student": "c d"}}, set="b", ended=True),
    *make_rows({"e": {"teacher": "x", "student": "e"}}, set="far", in_domain=False, ended=True),
]
SILENT = make_rows({"": {"teacher": "", "student": ""}}, set="non_speech", condition="hum", duration_s=30.0)


def test_headline_has_a_row_for_each_model_and_path():
    served = [*SPEECH, *SILENT]
    raw = [replace(row, path="raw", ended=row.set == "b") for row in SPEECH]
    raw += [replace(row, path="raw", hypothesis="thank you" * 2, ended=False) for row in SILENT]
    server = [replace(row, model="server") for row in served if row.model == "teacher"]
    rows = headline(score([*served, *raw, *server], "teacher"))
    right, wrong, half = "0.00 (0.00 to 0.00)", "100.00 (100.00 to 100.00)", "25.00 (25.00 to 25.00)"
    spoken = "1 of 1 clip, 6.00 a minute"
    assert rows == [
        ("teacher", "served", right, wrong, "0 of 4", "0 of 1 clip, 0.00 a minute"),
        ("teacher", "raw", right, wrong, "3 of 4", spoken),
        ("server", "served", right, wrong, "0 of 4", "0 of 1 clip, 0.00 a minute"),
        ("student", "served", half, right, "0 of 4", "0 of 1 clip, 0.00 a minute"),
        ("student", "raw", half, right, "3 of 4", spoken),
    ]
    assert {len(row) for row in rows} == {len(HEAD)}


def test_what_was_not_scored_is_a_dash():
    (row,) = headline(score([make_row("teacher", "a", "a")], "teacher"))
    assert row == ("teacher", "served", "0.00 (0.00 to 0.00)", "-", "0 of 1", "-")
