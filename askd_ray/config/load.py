"""Read a recipe from a name or a file, apply overrides, and check it; messages name the key."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from askd_ray.config.candidate import check_space
from askd_ray.config.data import Data
from askd_ray.config.evaluate import Evaluate
from askd_ray.config.explain import explain
from askd_ray.config.schema import Recipe
from askd_ray.config.tracking import Tracking
from askd_ray.config.tune import DEFAULT_SPACE
from askd_ray.errors import AskdError, did_you_mean, without_credentials
from askd_ray.files import local_path, scheme_of


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("askd_ray.config") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name (from the package) or from a YAML file, and apply ``a.b=c`` overrides.

    Raises :class:`AskdError` with one line: the key, the allowed values, and a close match.
    """
    return make_recipe(read_values(name_or_file), overrides, name_or_file)


def make_recipe(values: dict[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    """Return the recipe of YAML values after ``a.b=c`` overrides; ``values`` is modified.

    Raises :class:`AskdError` as :func:`load_recipe` does; ``origin`` names the values in the message.
    """
    override(values, overrides)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise AskdError(f"recipe {origin}: {explain(error)}") from None
    if recipe.tune.space != DEFAULT_SPACE:  # checked only when searched: not every preset allows the default space
        try:
            check_space(recipe)
        except AskdError as error:
            raise AskdError(f"recipe {origin}: {error}") from None
    return recipe


def override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply ``a.b=c`` overrides to YAML values, in place.

    Raises :class:`AskdError` for a malformed override.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise AskdError(f"--set {text!r}: write it as a.b=value, such as train.epochs=3")
        _set(values, key.split("."), _parse_value(value, key), key)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML without credentials; :func:`load_recipe` reads an otherwise equal recipe back."""
    return yaml.safe_dump(without_secrets(recipe).model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def without_secrets(recipe: Recipe) -> Recipe:
    """Return the recipe without the credentials in its URIs, for files and logs."""
    models = {name: without_credentials(reference) for name, reference in recipe.evaluate.models.items()}
    shown = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"models": models})})
    return _with_paths(shown, without_credentials)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths of data, runs, models, sounds and MLflow's folder.

    Workers, trials and jobs need absolute paths, since each runs in another folder.
    ``cache:`` and ``wheel:`` references, URIs and hub ids are unchanged.
    """
    parts = {"noise": recipe.augment.noise, "reverb": recipe.augment.reverb}
    sounds = {
        name: part.model_copy(update={"files": _absolute(part.files)})
        for name, part in parts.items()
        if part.files is not None
    }
    placed = _with_paths(recipe, _absolute)
    placed = placed.model_copy(update={"data": _with_absolute_sounds(placed.data)})
    return placed.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update={"model": _model(recipe.teacher.model)}),
            "student": recipe.student.model_copy(update={"init": _model(recipe.student.init)}),
            "augment": recipe.augment.model_copy(update=sounds),
            "tracking": _tracking(recipe.tracking),
            "evaluate": _evaluate(placed.evaluate),
        }
    )


def _with_absolute_sounds(data: Data) -> Data:
    if data.derive is None or data.derive.non_speech.files is None:
        return data
    non_speech = data.derive.non_speech.model_copy(update={"files": _absolute(data.derive.non_speech.files)})
    return data.model_copy(update={"derive": data.derive.model_copy(update={"non_speech": non_speech})})


def _evaluate(settings: Evaluate) -> Evaluate:
    sounds = {name: getattr(settings, name) for name in ("noise_files", "room_files")}
    changes = {
        "models": {name: _model(reference) for name, reference in settings.models.items()},
        **{name: pattern and _absolute(pattern) for name, pattern in sounds.items()},
    }
    return settings.model_copy(update=changes)


def _with_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """Return the recipe with ``change`` applied to the paths of its runs, data and test sets."""
    sources = tuple(source.model_copy(update={"path": change(source.path)}) for source in recipe.data.sources)
    sets = tuple(chosen.model_copy(update={"path": change(chosen.path)}) for chosen in recipe.evaluate.sets)
    return recipe.model_copy(
        update={
            "runs_root": change(recipe.runs_root),
            "data_root": None if recipe.data_root is None else change(recipe.data_root),
            "data": recipe.data.model_copy(update={"sources": sources}),
            "evaluate": recipe.evaluate.model_copy(update={"sets": sets}),
        }
    )


def _absolute(path: str) -> str:
    return path if path.startswith("cache:") or "://" in path else str(local_path(path).resolve())


def _tracking(tracking: Tracking) -> Tracking:
    if tracking.mlflow is None or tracking.is_server:
        return tracking
    return tracking.model_copy(update={"mlflow": _absolute(tracking.mlflow)})


def _model(reference: str | None) -> str | None:
    if reference is None or scheme_of(reference) is not None or not local_path(reference).exists():
        return reference  # a server, wheel:NAME, or an id on the hub
    return _absolute(reference)


def read_values(name_or_file: str) -> dict[str, Any]:
    """Return the unchecked values of a recipe by name or from a YAML file.

    Raises :class:`AskdError` when the recipe does not exist, or is not YAML.
    """
    path = Path(name_or_file)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise AskdError(f"recipe file {name_or_file} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise AskdError(f"recipe {name_or_file} is not YAML: no UTF-8 text") from None
    elif name_or_file in recipe_names():
        text = (resources.files("askd_ray.config") / "recipes" / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    else:
        names = recipe_names()
        hint = did_you_mean(name_or_file, names)
        raise AskdError(f"no recipe {name_or_file!r}: give a .yaml file or one of {', '.join(names)}{hint}")
    return parse_values(text, name_or_file)


def parse_values(text: str, origin: str) -> dict[str, Any]:
    """Return the unchecked values of a recipe's text; ``origin`` names it in the message.

    Raises :class:`AskdError` when it is not YAML.
    """
    values = _yaml(text, f"recipe {origin}")
    if not isinstance(values, dict):
        raise AskdError(f"recipe {origin}: expected a mapping of keys to values, found {type(values).__name__}")
    return values


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AskdError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _parse_value(text: str, key: str) -> Any:
    value = _yaml(text, f"--set {key}={text}")
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text, but the user means a number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set(values: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise AskdError(f"--set {key}: {part} is a value, not a section")
        values = inner
    values[path[-1]] = value
