"""Which recipe a command starts from: the one that it is given, else the run's own, else one that comes with askd."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from askd_ray.config.differences import copy_decided, plain
from askd_ray.config.load import load_recipe, make_recipe, override, read_values, with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import local_path
from askd_ray.progress import console

RECIPE_FILE = "recipe.yaml"
"""The run's own recipe, in its folder."""

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in a job's process


def start_recipe(stage: str, given: str | None, overrides: Sequence[str] = (), default: str = "demo") -> Recipe:
    """Return the recipe that a command is to use, with absolute paths.

    A recipe that is ``given`` (a name or a file) counts as it is. Without one, a run that has begun goes on with its
    own recipe, and a new run that shares another's data (``data_run``) starts from that one's; else ``default`` it is.
    In all cases ``overrides`` change it. A search starts from the settings of the run's last one, whatever has been
    trained since.

    Raises :class:`AskdError` as :func:`askd_ray.config.load.load_recipe` does.
    """
    recipe = load_recipe(given, overrides) if given is not None else _recipe_of_run(stage, overrides, default)
    if _IN_A_JOB in os.environ and not Path(recipe.runs_root).expanduser().is_absolute():
        raise AskdError(
            f"runs_root = {recipe.runs_root}: a Ray job runs in a copy of its folder that is deleted afterwards: give "
            "an absolute path (--set runs_root=FOLDER), or use `askd submit`, which does"
        )
    return with_absolute_paths(recipe)


def _recipe_of_run(stage: str, overrides: Sequence[str], default: str) -> Recipe:
    named = read_values(default)
    override(named, overrides)
    root, name = named.get("runs_root", "runs"), named.get("name")
    file = _recipe_file(root, name, named.get("data_run"))
    if file is None:
        return load_recipe(default, overrides)
    values = read_values(str(file)) | {"name": name, "runs_root": root}
    if stage in ("tune", "demo") and file.parent.name == name:
        _put_back_searched(values, file.parent / "tune.json")
    console.print(f"recipe: {file}, which `--recipe {default}` or another would replace", markup=False)
    return make_recipe(values, overrides, str(file))


def _recipe_file(root: Any, *runs: Any) -> Path | None:
    """Return the recipe of the first of the runs that has one. Values that are no names are refused later."""
    files = [local_path(root) / run / RECIPE_FILE for run in runs if isinstance(root, str) and isinstance(run, str)]
    return next((file for file in files if file.is_file()), None)


def _put_back_searched(values: dict[str, Any], record: Path) -> None:
    """Undo in a recipe what a training took over from the search that ``record`` tells of."""
    if not record.is_file():
        return
    try:
        searched = plain(Recipe.model_validate(json.loads(record.read_bytes())["recipe"]))
    except ValidationError:  # another version's: the search is to be done again
        return
    for stage in ("tune", "distill"):
        copy_decided(searched, values, stage)
