from pathlib import Path

import pytest

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.runs import Run


def test_runs_share_the_data_of_another_run(tmp_path: Path):
    first = Run(Recipe(name="first", runs_root=str(tmp_path)))
    second = Run(Recipe(name="second", data_run="first", runs_root=str(tmp_path)))
    first.finish("prepare", "data", {"n": 1}, first.begin())
    first.finish("label", "soft", {"n": 2}, first.begin())
    first.finish("distill", "student", {}, first.begin())
    assert (second.shards, second.labels) == (first.shards, first.labels)
    assert second.finished("label", "soft") == {"n": 2} and second.key("prepare") == "data"
    assert second.distill == tmp_path / "second" / "distill"
    with pytest.raises(AskdError, match="run second: stage 'distill' has not finished"):
        second.result("distill")
