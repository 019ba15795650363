"""A candidate of a search: a recipe with some values changed, and always a valid one."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from askd_ray.config.schema import Recipe
from askd_ray.config.section import UnreadFieldError
from askd_ray.config.tune import Between, Domain, Tune, Value, is_integer
from askd_ray.errors import AskdError

_DRAWS = 128
_START, _END = "objective.teacher_weight.start", "objective.teacher_weight.end"
_WEIGHTS = (_START, _END, "objective.self_teacher.weight")

FieldValues = Mapping[str, Value]
"""A candidate's values by path."""


def with_values(recipe: Recipe, values: FieldValues) -> Recipe:
    """Return the recipe with a candidate's values.

    What the candidate's kinds do not read is left at its default. A teacher's weight that is searched never rises, and
    the self weight is cut to what it leaves.

    Raises :class:`AskdError` when that is no valid recipe.
    """
    return _fitted(recipe, values)[0]


def read_values(recipe: Recipe, values: FieldValues) -> dict[str, Value]:
    """Return those of a candidate's values that its recipe reads, as they are there: weights may have been cut."""
    candidate, dropped = _fitted(recipe, values)
    plain = candidate.model_dump()
    return {path: _value(plain, path) for path in values if not _is_below(path, dropped)}


def _fitted(recipe: Recipe, values: FieldValues) -> tuple[Recipe, set[str]]:
    """Return the recipe with the values, and the paths that were put back to their defaults."""
    plain, dropped = recipe.model_dump(), set[str]()
    for path, value in values.items():
        section, name = _place(plain, path)
        section[name] = value
    _cut_weights(plain["objective"], values)
    while True:
        try:
            return Recipe.model_validate(plain), dropped
        except ValidationError as error:
            unread = {path for details in error.errors() for path in _unread(details)}
            if not unread:
                raise AskdError(_line(error.errors()[0])) from None
            for path in unread:
                section, name = _place(plain, path)
                section[name] = _default(path)
            dropped |= unread


def _unread(details: ErrorDetails) -> list[str]:
    """Return the paths in the objective that nothing would read, where an error is about that."""
    error, where = details.get("ctx", {}).get("error"), [str(part) for part in details["loc"]]
    if not isinstance(error, UnreadFieldError) or where[:1] != ["objective"]:
        return []
    return [".".join([*where, name]) for name in error.fields]


def _line(details: ErrorDetails) -> str:
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}".removeprefix(": ").replace("Value error, ", "")


def _cut_weights(objective: dict[str, Any], values: FieldValues) -> None:
    if not any(path in values for path in _WEIGHTS):
        return
    teacher, self_teacher = objective["teacher_weight"], objective["self_teacher"]
    if _START in values or _END in values:
        teacher["end"] = min(teacher["end"], teacher["start"])
    max_teacher_weight = (
        teacher["start"] if teacher["schedule"] == "constant" else max(teacher["start"], teacher["end"])
    )
    self_teacher["weight"] = min(self_teacher["weight"], 1.0 - max_teacher_weight)


def _place(plain: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the section of a plain recipe that a path leads into, and the name of the field there."""
    *sections, name = path.split(".")
    for section in sections:
        plain = plain[section]
    return plain, name


def _value(plain: dict[str, Any], path: str) -> Any:
    section, name = _place(plain, path)
    return section[name]


def _is_below(path: str, others: set[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def check_space(recipe: Recipe) -> None:
    """Check that every candidate of the recipe's search is a valid recipe, and that some candidate reads each path.

    Each path is tried alone with its values, or its ends, and then all of them together, at random.
    Raises :class:`AskdError` that names the path.
    """
    space, bare = recipe.tune.space, recipe.model_copy(update={"tune": Tune()})
    if not recipe.teacher.online and any(path.startswith("objective.temperature.") for path in space):
        raise AskdError(
            "tune.space: objective.temperature cannot vary: cached soft labels have one baked in, and only "
            "teacher.online=true does without"
        )
    for path, domain in space.items():
        for value in _corners(domain):
            try:
                with_values(bare, {path: value})
            except AskdError as error:
                raise AskdError(f"tune.space: with {path} = {value!r}, {error}") from None
    rng, unread = random.Random(0), set(space)
    for _ in range(_DRAWS):
        values = {path: _drawn(path, domain, rng) for path, domain in space.items()}
        try:
            _, dropped = _fitted(bare, values)
        except AskdError as error:
            raise AskdError(f"tune.space: some of its paths do not go together: {error}") from None
        unread -= {path for path, v in values.items() if not _is_below(path, dropped) and v != _default(path)}
    if unread:
        raise AskdError(f"tune.space: no candidate would read {', '.join(sorted(unread))}: see what its kind is")


def grid(recipe: Recipe) -> list[dict[str, Value]]:
    """Return every combination of the space's lists, those that make the same recipe only once."""
    lists = {path: domain for path, domain in recipe.tune.space.items() if not isinstance(domain, Between)}
    found: dict[str, dict[str, Value]] = {}
    for values in itertools.product(*lists.values()):
        candidate = dict(zip(lists, values, strict=True))
        found.setdefault(with_values(recipe, candidate).model_dump_json(), candidate)
    return list(found.values())


def _corners(domain: Domain) -> tuple[Value, ...]:
    return (domain.low, domain.high) if isinstance(domain, Between) else domain


def _drawn(path: str, domain: Domain, rng: random.Random) -> Value:
    """Return a value of a domain, its ends as often as what lies between."""
    if not isinstance(domain, Between) or rng.random() < 0.5:
        return rng.choice(_corners(domain))
    value = rng.uniform(domain.low, domain.high)
    return round(value) if is_integer(path) else value


def _default(path: str) -> Any:
    section: Any = Recipe
    *sections, name = path.split(".")
    for part in sections:
        section = section.model_fields[part].annotation
    return section.model_fields[name].default
