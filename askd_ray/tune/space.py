"""What a trial changes in a recipe: the shape and the ends of the decay, and the self weight."""

from dataclasses import dataclass
from typing import Any

from askd_ray.config.schema import Recipe


@dataclass(frozen=True)
class Uniform:
    """A number between two bounds."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[str, ...]


def search_space(recipe: Recipe) -> dict[str, Uniform | Choice]:
    """Return the dimensions that the recipe's ``tune`` section opens, free of any search library."""
    bounds = recipe.tune
    return {
        "schedule": Choice(tuple(bounds.schedules)),
        "start": Uniform(*bounds.start),
        "end": Uniform(*bounds.end),
        "self_weight": Uniform(*bounds.self_weight),
    }


def with_trial(recipe: Recipe, trial: dict[str, Any]) -> Recipe:
    """Return the recipe with a trial's values. Weights are cut so that they never add up to more than 1."""
    start = float(trial["start"])
    end = min(float(trial["end"]), start)
    values = recipe.model_dump()
    values["objective"]["teacher_weight"] |= {"schedule": trial["schedule"], "start": start}
    if trial["schedule"] != "constant":
        values["objective"]["teacher_weight"]["end"] = end
    values["objective"]["self_teacher"]["weight"] = min(float(trial["self_weight"]), 1.0 - start)
    return Recipe.model_validate(values)
