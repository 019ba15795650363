from typing import Any

import pytest

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.targets import Targets
from askd_ray.errors import AskdError

# Another value for every field that only pseudo-labels read.
OTHER: dict[str, Any] = {
    "timestamps": True,
    "beam_size": 5,
    "max_wer": 0.2,
    "min_mean_log_prob": -0.5,
    "max_compression_ratio": 2.0,
    "max_repeats": 1,
    "chars_per_s": [2, 20],
}


@pytest.mark.parametrize("field", OTHER)
def test_what_references_do_not_read_is_refused(field: str):
    setting = f"targets.{field}={OTHER[field]}"
    with pytest.raises(AskdError, match=rf"{field} = .* would be ignored: the teacher transcribes nothing"):
        load_recipe("demo", ["data.derive=null", setting])
    for pseudo in (["targets.kind=pseudo", "data.derive=null"], []):  # the teacher transcribes derived clips
        assert getattr(load_recipe("demo", [*pseudo, setting]).targets, field) != getattr(Targets(), field)


def test_every_field_has_been_thought_of():
    assert set(Targets.model_fields) == {*OTHER, "kind", "prompt", "states"}


def test_both_kinds_read_the_prompt_and_keep_states():
    assert load_recipe("demo", ["targets.prompt=Asterisk."]).targets.prompt == "Asterisk."
    assert load_recipe("demo", ["targets.states=all"]).targets.states == "all"  # also if the objective reads none


def test_pseudo_targets_survive_the_file(tmp_path):
    recipe = Recipe.model_validate({"targets": {"kind": "pseudo", **OTHER, "max_wer": None}})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    "wrong", ["chars_per_s=[3,2]", "beam_size=0", "max_wer=-0.1", "min_mean_log_prob=0.1", "max_repeats=-1"]
)
def test_values_that_make_no_sense(wrong: str):
    with pytest.raises(AskdError, match=rf"targets.*{wrong.split('=')[0]}"):
        load_recipe("demo", ["targets.kind=pseudo", f"targets.{wrong}"])
