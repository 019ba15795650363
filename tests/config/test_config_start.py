"""Which recipe a command starts from."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.start import start_recipe
from askd_ray.errors import AskdError


@pytest.fixture
def saved_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A run that has begun, in a folder below the current one, of sources and a seed of its own."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("demo", ["name=mine", "data.sources=[{path: /own}]", "seed=7", f"runs_root={tmp_path}/runs"])
    write(recipe)
    return recipe


def write(recipe: Recipe) -> Path:
    folder = Path(recipe.runs_root) / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


def test_a_run_that_has_begun_goes_on_with_its_own_recipe(saved_recipe: Recipe):
    assert start_recipe("label", None, ["name=mine"]) == saved_recipe
    changed = start_recipe("distill", None, ["name=mine", "train.epochs=9"])
    assert changed == saved_recipe.model_copy(update={"train": saved_recipe.train.model_copy(update={"epochs": 9})})


def test_its_own_recipe_does_by_its_file_alone(saved_recipe: Recipe):
    assert start_recipe("label", "runs/mine/recipe.yaml") == saved_recipe


def test_a_recipe_that_is_given_counts_as_it_is(saved_recipe: Recipe):
    assert start_recipe("label", "demo", ["name=mine"]).data == load_recipe("demo").data


def test_a_new_run_starts_from_the_default(saved_recipe: Recipe):
    assert start_recipe("label", None, ["name=new"]).data == load_recipe("demo").data
    assert start_recipe("study", None, [], "study_cpu").name == load_recipe("study_cpu").name


def test_a_new_run_on_another_ones_data_starts_from_that_ones_recipe(saved_recipe: Recipe):
    recipe = start_recipe("distill", None, ["name=second", "data_run=mine", "train.optimizer.lr=0.5"])
    assert (recipe.name, recipe.data_run, recipe.data, recipe.seed) == ("second", "mine", saved_recipe.data, 7)
    assert recipe.train.optimizer.lr == 0.5


def test_the_run_without_a_name_is_found_too(saved_recipe: Recipe):
    write(saved_recipe.model_copy(update={"name": "demo"}))
    assert start_recipe("export", None).seed == 7


def test_a_folder_of_runs_that_was_moved_is_not_written_to_where_it_was(saved_recipe: Recipe, tmp_path: Path):
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert start_recipe("label", None, ["name=mine", "runs_root=moved"]).runs_root == str(tmp_path / "moved")


def test_paths_are_absolute_whoever_runs_it_later_and_from_where(saved_recipe: Recipe, tmp_path: Path):
    recipe = start_recipe("prepare", None, ["name=new", "data.sources=[{path: speech}]"])
    assert (recipe.data.sources[0].path, recipe.runs_root) == (str(tmp_path / "speech"), str(tmp_path / "runs"))


def test_a_search_starts_from_the_settings_of_the_last_one(saved_recipe: Recipe):
    """`askd demo` twice: what the training took from the search must not make another search of it."""
    folder = write(saved_recipe.model_copy(update={"seed": 99}))
    (folder / "tune.json").write_text(json.dumps({"recipe": saved_recipe.model_dump(mode="json")}))
    assert [start_recipe(stage, None, ["name=mine"]).seed for stage in ("tune", "demo", "export")] == [7, 7, 99]


def test_a_search_of_another_version_is_left_out(saved_recipe: Recipe):
    folder = write(saved_recipe)
    (folder / "tune.json").write_text(json.dumps({"recipe": {"gone": 1}}))
    assert start_recipe("tune", None, ["name=mine"]) == saved_recipe


@pytest.mark.parametrize("values", [{"name": 5}, {"name": None}, {"runs_root": [1]}, {"data_run": {"a": 1}}])
def test_values_that_are_no_names_are_refused_by_their_key(saved_recipe: Recipe, values: dict[str, Any]):
    key = next(iter(values))
    if key == "data_run":
        values = {"name": "new", **values}
    overrides = [f"{k}={yaml.safe_dump(v, default_flow_style=True).partition(chr(10))[0]}" for k, v in values.items()]
    with pytest.raises(AskdError, match=key):
        start_recipe("label", None, overrides)


def test_a_recipe_of_another_version_names_its_file(saved_recipe: Recipe, tmp_path: Path):
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("gone: 1")
    with pytest.raises(AskdError, match=r"runs/mine/recipe\.yaml: unknown key 'gone'"):
        start_recipe("label", None, ["name=mine"])


def test_results_of_a_job_do_not_go_where_they_are_deleted(saved_recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(AskdError, match=r"runs_root = runs: a Ray job runs in a copy.*absolute path"):
        start_recipe("label", "demo")
    assert start_recipe("label", "demo", ["runs_root=/data/runs"]).runs_root == "/data/runs"
