"""What is wrong with a recipe, as one line: the key, its value, and what is allowed."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from askd_ray.config.renamed import REMOVED, RENAMED
from askd_ray.config.schema import Recipe
from askd_ray.config.section import Section
from askd_ray.config.variants import Variants
from askd_ray.errors import did_you_mean, without_credentials


def explain(error: ValidationError) -> str:
    """Return the first mistake of a recipe as one line; if keys were renamed or removed, all of them."""
    mistakes = error.errors()
    unknown = (m for m in mistakes if m["type"] in ("extra_forbidden", "model_type"))
    keys = [".".join(str(part) for part in mistake["loc"]) for mistake in unknown]
    changed = [f"{key} is called {RENAMED[key]} now" for key in keys if key in RENAMED]
    changed += [f"{key}: {REMOVED[key]}" for key in keys if key in REMOVED]
    if changed:
        return ", ".join(changed)
    return _one_line(mistakes[0])


def _one_line(error: ErrorDetails) -> str:
    message, given, place = error["msg"].removeprefix("Value error, "), error["input"], _place(error["loc"])
    key, allowed = place.key, str(error.get("ctx", {}).get("expected", ""))
    if error["type"] == "extra_forbidden":
        return _unknown(key, place)
    if error["type"] == "union_tag_invalid" and place.variants is not None:
        allowed, tag = str(error.get("ctx", {})["expected_tags"]), place.variants.tag
        key, given, message = f"{key}.{tag}", given[tag], f"Input should be one of {allowed}"
    if isinstance(given, dict):  # a check of a whole section: its message needs no value
        return f"{key}: {message}".removeprefix(": ")
    words = [word.strip(" '") for word in allowed.replace(" or ", ",").split(",")]
    hint = did_you_mean(given, words) if isinstance(given, str) else ""
    return without_credentials(f"{key} = {given!r}: {message}{hint}")


def _unknown(key: str, place: "_Place") -> str:
    """Return what to say of a key that its section does not have."""
    name, fields = key.rpartition(".")[2], sorted(place.section.model_fields)
    allowed = f"allowed here are {', '.join(fields)}"
    if place.variants is None or not (readers := place.variants.readers(name)):
        return f"unknown key {key!r}: {allowed}{did_you_mean(name, fields)}"
    tag = place.variants.tag
    return f"{key}: unknown with {tag} {place.chosen}: {allowed}; {tag} {' or '.join(readers)} reads {name}"


class _Place(NamedTuple):
    """Where a mistake is: its key, the section that has the key, and if a kind chose the section, its variants."""

    key: str
    section: type[BaseModel]
    variants: Variants | None = None
    chosen: str = ""


def _place(location: tuple[int | str, ...]) -> _Place:
    """Return the place of an error; pydantic names the chosen variant like a key, a recipe does not."""
    place, names = _Place("", Recipe), list[str]()
    for part in map(str, location):
        if place.variants is not None and not place.chosen and part in place.variants.sections:
            place = place._replace(section=place.variants.sections[part], chosen=part)
            continue
        names.append(part)
        field = place.section.model_fields.get(part)
        if field is not None:
            section = next(_sections_in(field.annotation), None)
            place = _Place("", section or place.section, Variants.of(field))
    return place._replace(key=".".join(names))


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a type names: also those of a list, a mapping or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
