"""The checks of `askd label` that need neither Ray nor the teacher's weights."""

import json
from pathlib import Path

import pytest

from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.errors import AskdError
from askd_ray.targets import ray_label


def test_language_unknown_to_the_teacher_is_refused_before_ray_starts(
    speech: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    """The shards may be older than the choice of the teacher, so `askd prepare` could not check its languages."""
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()[:3]]
    rows = [{**row, "audio": str(speech / row["audio"]), "language": "German"} for row in rows]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [{"path": str(tmp_path)}], "dev_share": 0.0, "test_share": 0.0}
    settings = {"name": "mine", "runs_root": str(tmp_path / "runs"), "data": data}
    prepare(Recipe.model_validate({**settings, "teacher": {"model": "some/model"}}))
    monkeypatch.setattr(ray_label, "connect", lambda: pytest.fail("Ray starts"))
    message = r"^label: the shards have 3 in 'de', and teacher\.model .* knows only 'en'"
    with pytest.raises(AskdError, match=message):
        ray_label.label(Recipe.model_validate({**settings, "teacher": {"model": str(weights)}}))
