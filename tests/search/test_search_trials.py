import io

import pytest
from rich.console import Console

from askd_ray.config.schema import Recipe
from askd_ray.config.tune import DEFAULT_SPACE
from askd_ray.errors import AskdError
from askd_ray.runs import Run
from askd_ray.search.trials import check_place_of_search, column_names, table


def test_column_names_are_short_and_unique():
    paths = [
        "train.optimizer.lr",
        "objective.teacher_weight.start",
        "objective.self_teacher.weight",
        "objective.preset",
    ]
    assert column_names(paths) == ["lr", "start", "weight", "preset"]
    paths = ["objective.teacher_weight.schedule", "objective.self_teacher.schedule", "window.padded_share"]
    assert column_names(paths) == ["teacher_weight\nschedule", "self_teacher\nschedule", "padded_share"]


def test_table_of_the_default_search_fits_80_columns():
    values = dict.fromkeys(DEFAULT_SPACE, 0.125)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table([{"state": "running", "score": 0.125, "evaluations": 3, "values": values}], "trials"))
    text = console.export_text()
    assert "…" not in text
    for path in DEFAULT_SPACE:
        assert path.rpartition(".")[2] in text


def test_search_of_a_run_on_a_store_is_refused():
    run = Run(Recipe(name="mine", runs_root="s3://key:secret@bucket/runs"))
    with pytest.raises(AskdError, match=r"^askd tune: .* \(s3://bucket/runs/mine\).*runs_root") as caught:
        check_place_of_search(run)
    assert "secret" not in str(caught.value)
    check_place_of_search(Run(Recipe()))
