"""Choose the recipe of a command: the given one, or else the recipe of the run, or else a default of the package."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from askd_ray.config.differences import copy_decided, plain
from askd_ray.config.load import load_recipe, make_recipe, override, parse_values, read_values, with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import scheme_of
from askd_ray.location import Location
from askd_ray.progress import console

RECIPE_FILE = "recipe.yaml"
"""The recipe of a run, in its folder."""

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in a job's process


def start_recipe(stage: str, given: str | None, overrides: Sequence[str] = (), default: str = "demo") -> Recipe:
    """Return the recipe for a command, with absolute paths.

    A ``given`` recipe (a name or a file) is used as it is. Without it, an existing run continues with its recipe, and
    a new run that shares another run's data (``data_run``) starts from that run's recipe; otherwise ``default`` is
    used. In all cases ``overrides`` are applied. A search starts from the settings of the run's last search, even if a
    training has changed them since.

    Raises :class:`AskdError` as :func:`askd_ray.config.load.load_recipe` does.
    """
    recipe = load_recipe(given, overrides) if given is not None else _recipe_of_run(stage, overrides, default)
    root = recipe.runs_root
    if _IN_A_JOB in os.environ and scheme_of(root) is None and not Path(root).expanduser().is_absolute():
        raise AskdError(
            f"runs_root = {root}: a Ray job runs in a copy of its folder that is deleted afterwards: give "
            "an absolute path (--set runs_root=FOLDER), or use `askd submit`, which makes it absolute"
        )
    return with_absolute_paths(recipe)


def _recipe_of_run(stage: str, overrides: Sequence[str], default: str) -> Recipe:
    default_values = read_values(default)
    override(default_values, overrides)
    root, name = default_values.get("runs_root", "runs"), default_values.get("name")
    file = _recipe_file(root, name, default_values.get("data_run"))
    if file is None:
        return load_recipe(default, overrides)
    values = parse_values(file.read_bytes().decode(), str(file)) | {"name": name, "runs_root": root}
    if stage in ("tune", "demo") and file.parent.name == name:
        _undo_search_result(values, file.parent / "tune.json")
    console.print(f"recipe: {file} (use `--recipe {default}`, or another name, to replace it)", markup=False)
    return make_recipe(values, overrides, str(file))


def _recipe_file(root: Any, *runs: Any) -> Location | None:
    """Return the recipe file of the first run that has one. Invalid names are refused later."""
    if not isinstance(root, str):
        return None
    files = [Location.of(root) / run / RECIPE_FILE for run in runs if isinstance(run, str)]
    return next((file for file in files if file.is_file()), None)


def _undo_search_result(values: dict[str, Any], record: Location) -> None:
    """Reset the settings that a training took from a search to those before it; ``record`` is the search's record."""
    if not record.is_file():
        return
    try:
        searched = plain(Recipe.model_validate(json.loads(record.read_bytes())["recipe"]))
    except ValidationError:  # of another version: the search has to be repeated
        return
    for stage in ("tune", "distill"):
        copy_decided(searched, values, stage)
