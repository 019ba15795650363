"""A candidate of a search: the recipe with some values changed, always valid."""

import itertools
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from askd_ray.config.explain import explain
from askd_ray.config.objective import TERMS, Objective
from askd_ray.config.schedules import TeacherWeight, weight_at
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import Between, Domain, Tune, Value, is_integer
from askd_ray.config.variants import Variants
from askd_ray.errors import AskdError

_N_DRAWS = 128
_START, _END = "objective.teacher_weight.start", "objective.teacher_weight.end"
_WEIGHTS = (_START, _END, "objective.self_teacher.weight")

FieldValues = Mapping[str, Value]
"""A candidate's values by path."""


def with_values(recipe: Recipe, values: FieldValues) -> Recipe:
    """Return the recipe with a candidate's values.

    Fields that the candidate's kinds do not read keep their defaults. A searched teacher weight never rises, and the
    self-teacher's weight is limited so that both add up to at most 1 from ``self_teacher.switch`` on.

    Raises :class:`AskdError` when the result is no valid recipe.
    """
    return _apply(recipe, values)[0]


def read_values(recipe: Recipe, values: FieldValues) -> dict[str, Value]:
    """Return the candidate's values that its recipe reads, as the recipe has them: weights may have been limited."""
    candidate, dropped = _apply(recipe, values)
    plain = candidate.model_dump()
    return {path: _value(plain, path) for path in values if not _is_below(path, dropped)}


def _apply(recipe: Recipe, values: FieldValues) -> tuple[Recipe, set[str]]:
    """Return the recipe with the values, and the paths that it does not read: they were left out."""
    plain = recipe.model_dump()
    for path, value in values.items():
        section, name = _section_of(plain, path)
        section[name] = value
    objective = plain["objective"]
    unread = _leave_out_unread(objective)
    _limit_weights(objective, values)
    unread |= _leave_out_unweighted(objective["self_teacher"])
    unread |= _leave_out_unmatched(objective)
    terms = {name: objective.pop(name) for name in TERMS}
    try:
        unread_terms = Recipe.model_validate(plain).objective.unread_terms
        objective |= {name: term for name, term in terms.items() if name not in unread_terms}
        return Recipe.model_validate(plain), unread | {f"objective.{name}" for name in unread_terms}
    except ValidationError as error:
        raise AskdError(explain(error)) from None


def _leave_out_unread(objective: dict[str, Any]) -> set[str]:
    """Reduce each section to the fields of its kind, with defaults for those not given; return the other paths."""
    unread = set[str]()
    for name, field in Objective.model_fields.items():
        variants = Variants.of(field)
        chosen = variants.chosen(objective[name]) if variants is not None else None
        if chosen is not None:
            given = objective[name]
            objective[name] = {key: given.get(key, read.default) for key, read in chosen.model_fields.items()}
            unread |= {f"objective.{name}.{key}" for key in given.keys() - objective[name].keys()}
    return unread


def _leave_out_unweighted(self_teacher: dict[str, Any]) -> set[str]:
    """Leave out what a self-teacher without weight does not read; return the paths."""
    if self_teacher.get("weight") != 0.0:
        return set()
    unread = self_teacher.keys() - {"kind", "weight"}
    for name in unread:
        del self_teacher[name]
    return {f"objective.self_teacher.{name}" for name in unread}


def _leave_out_unmatched(objective: dict[str, Any]) -> set[str]:
    """Do not match the decoder states of a self-teacher without weight; return the path if they were to be matched."""
    if objective["self_teacher"].get("weight") or not objective["decoder_states"].get("self_teacher"):
        return set()
    objective["decoder_states"]["self_teacher"] = False
    return {"objective.decoder_states.self_teacher"}


def _limit_weights(objective: dict[str, Any], values: FieldValues) -> None:
    if not any(path in values for path in _WEIGHTS):
        return
    teacher, self_teacher = objective["teacher_weight"], objective["self_teacher"]
    if "end" in teacher and (_START in values or _END in values):
        teacher["end"] = min(teacher["end"], teacher["start"])
    if "weight" in self_teacher:
        schedule = _teacher_weights().validate_python(teacher)
        beside = max(weight_at(schedule, u) for u in (self_teacher["switch"], 1.0))  # between them it lies between both
        self_teacher["weight"] = min(self_teacher["weight"], 1.0 - beside)


@cache
def _teacher_weights() -> TypeAdapter[TeacherWeight]:
    return TypeAdapter(TeacherWeight)


def _section_of(plain: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the section of a plain recipe that holds a path's field, and the name of the field."""
    *sections, name = path.split(".")
    for section in sections:
        plain = plain[section]
    return plain, name


def _value(plain: dict[str, Any], path: str) -> Any:
    section, name = _section_of(plain, path)
    return section[name]


def _is_below(path: str, others: set[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def check_space(recipe: Recipe) -> None:
    """Check that every candidate of the recipe's search is a valid recipe, and that some candidate reads each path.

    Each path is tried alone with its values or bounds; then all paths are tried together, at random.
    Raises :class:`AskdError` that names the path.
    """
    space, without_search = recipe.tune.space, recipe.model_copy(update={"tune": Tune()})
    if not recipe.teacher.online and any(path.startswith("objective.temperature.") for path in space):
        raise AskdError(
            "tune.space: objective.temperature cannot vary: cached soft labels are computed with one temperature; "
            "only teacher.online=true allows others"
        )
    for path, domain in space.items():
        for value in _ends_or_values(domain):
            try:
                with_values(without_search, {path: value})
            except AskdError as error:
                raise AskdError(f"tune.space: with {path} = {value!r}, {error}") from None
    rng, unread = random.Random(0), set(space)
    for _ in range(_N_DRAWS):
        values = {path: _draw(path, domain, rng) for path, domain in space.items()}
        try:
            _, dropped = _apply(without_search, values)
        except AskdError as error:
            raise AskdError(f"tune.space: some of its paths cannot be combined: {error}") from None
        unread -= {path for path in values if not _is_below(path, dropped)}
    if unread:
        raise AskdError(
            f"tune.space: no candidate would read {', '.join(sorted(unread))}: check the kind of its section"
        )


def grid(recipe: Recipe) -> list[dict[str, Value]]:
    """Return every combination of the space's lists; of those that give the same recipe, only the first."""
    lists = {path: domain for path, domain in recipe.tune.space.items() if not isinstance(domain, Between)}
    candidates: dict[str, dict[str, Value]] = {}
    for values in itertools.product(*lists.values()):
        candidate = dict(zip(lists, values, strict=True))
        candidates.setdefault(with_values(recipe, candidate).model_dump_json(), candidate)
    return list(candidates.values())


def _ends_or_values(domain: Domain) -> tuple[Value, ...]:
    return (domain.low, domain.high) if isinstance(domain, Between) else domain


def _draw(path: str, domain: Domain, rng: random.Random) -> Value:
    """Draw a value of a domain; for a range, half of the draws are its bounds."""
    if not isinstance(domain, Between) or rng.random() < 0.5:
        return rng.choice(_ends_or_values(domain))
    value = rng.uniform(domain.low, domain.high)
    return round(value) if is_integer(path) else value
