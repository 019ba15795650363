"""Writes docs/recipe.md, the reference of all recipe keys, from the schema; --check only says whether it is current.

python scripts/recipe_page.py [--check]
"""

import argparse
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from askd_ray.config.schema import Recipe
from askd_ray.config.variants import Variants

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
PLAIN_TYPES = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
INTRODUCTION = """# Recipe reference

All keys of a recipe. `--set a.b=value` sets one; `askd presets` lists the objectives.
This page is made from the schema by `python scripts/recipe_page.py`.
"""


def page() -> str:
    """Return the page: a heading and a table for each section, nested ones after their parents."""
    return INTRODUCTION + "".join(parts("", Recipe, {}))


def parts(path: str, section: type[BaseModel], known: dict[type[BaseModel], str]) -> Iterator[str]:
    """Yield a section's text and those below it; ``known`` holds the paths of the sections before it."""
    if section in known:  # an arm of a study is an objective
        return
    known[section] = path
    fields, text = section.model_fields, text_of(section)
    for base in section.__bases__:
        if base in known:
            fields = {name: field for name, field in fields.items() if name not in base.model_fields}
            text += f"\n\nIt has the keys of `{known[base]}`, and these:"
    yield f"\n## {f'`{path}`' if path else 'Top level'}\n\n{text}\n{table(path, fields)}"
    for name, field in fields.items():
        inner, variants = f"{path}.{name}".lstrip("."), Variants.of(field)
        if variants is not None:
            yield union(inner, field, variants)
            continue
        for model, suffix in models_in(field.annotation):
            yield from parts(f"{inner}{suffix}", model, known)


def union(path: str, field: FieldInfo, variants: Variants) -> str:
    """Return the text of a field with variants: one heading and table for each."""
    text = f"\n## `{path}`\n\n{description_of(field)} Its keys depend on `{variants.tag}`.\n"
    for section in dict.fromkeys(variants.sections.values()):
        values = ", ".join(f"`{value}`" for value, other in variants.sections.items() if other is section)
        rest = {name: f for name, f in section.model_fields.items() if name != variants.tag}
        text += f"\n### `{path}.{variants.tag}`: {values}\n\n{text_of(section)}\n{table(path, rest)}"
    return text


def table(path: str, fields: Mapping[str, FieldInfo]) -> str:
    """Return the table of a section's fields, or nothing if it has none."""
    rows = [row(path, name, field) for name, field in fields.items()]
    return "".join(["\n| key | type | default | meaning |\n|---|---|---|---|\n", *rows]) if rows else ""


def models_in(annotation: Any, suffix: str = "") -> list[tuple[type[BaseModel], str]]:
    """Return the sections that a field's type names."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [(annotation, suffix)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    suffix = "[]" if origin in (list, tuple) else ".NAME" if origin is dict else suffix
    return [found for argument in arguments for found in models_in(argument, suffix)]


def text_of(section: type[BaseModel]) -> str:
    """Return a section's docstring as Markdown."""
    return markdown(inspect.getdoc(section) or "")


def markdown(text: str) -> str:
    """Return reStructuredText's roles and literals as Markdown."""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def row(path: str, name: str, field: FieldInfo) -> str:
    """Return a field as a row of its section's table."""
    variants = Variants.of(field)
    if variants is not None:
        kind, default = (
            f"by `{variants.tag}`",
            f"`{getattr(field.get_default(call_default_factory=True), variants.tag)}`",
        )
    else:
        kind, default = type_of(field.annotation), default_of(field)
    cells = [f"`{path}.{name}`".replace("`.", "`"), kind, default, description_of(field)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def description_of(field: FieldInfo) -> str:
    """Return a field's docstring as one line of Markdown."""
    return markdown(" ".join((field.description or "").split()))


def type_of(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else type_of(part) for part in arguments)
    if origin in (list, tuple):
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return f"mapping to {type_of(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    return PLAIN_TYPES[annotation]


def default_of(field: FieldInfo) -> str:
    """Return a field's default as it is written."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "needed"
    if isinstance(value, BaseModel):
        return ""
    text = value if isinstance(value, str) and value else json.dumps(to_jsonable_python(value))
    return f"`{text}`" if len(text) <= 60 else "see the schema"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.name} is not current: python scripts/recipe_page.py")


if __name__ == "__main__":
    main()
