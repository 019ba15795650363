import re
from pathlib import Path

import pytest

from askd_ray.config.load import load_recipe, with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.errors import AskdError


def test_recordings_without_speech_have_an_absolute_pattern():
    """A job, and every process of Ray, runs in another folder."""
    recipe = Recipe.model_validate({"data": {"derive": {"non_speech": {"files": "noise/*.ogg"}}}})
    derive = with_absolute_paths(recipe).data.derive
    assert derive is not None
    assert derive.non_speech.files == str(Path.cwd() / "noise/*.ogg")
    for same in (Recipe(), Recipe.model_validate({"data": {"derive": None}})):
        assert with_absolute_paths(same).data == same.data


def test_missing_recordings_are_refused_before_any_row_is_read(tmp_path: Path, speech: Path):
    pattern = str(tmp_path / "*.ogg")
    data = {"sources": [{"path": str(speech)}], "derive": {"non_speech": {"files": pattern}}}
    recipe = Recipe.model_validate({"runs_root": str(tmp_path / "runs"), "data": data})
    with pytest.raises(AskdError, match=r"^data\.derive\.non_speech\.files = .* matches no file"):
        prepare(recipe)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("crops={per_utterance: 0, text: reference}", "text = 'reference' would be ignored: per_utterance is 0"),
        ("crops={duration_s: [2, 1]}", "duration_s is [min, max]: the first must not exceed the second"),
        ("stitched={pause_s: [1, 0.5]}", "pause_s is [min, max]: the first must not exceed the second"),
        ("non_speech={per_utterance: 0, files: x}", "files = 'x' would be ignored: per_utterance is 0"),
    ],
)
def test_contradictions_have_one_clear_line(setting: str, message: str):
    with pytest.raises(AskdError, match=re.escape(message)):
        load_recipe("demo", [f"data.derive.{setting}"])
