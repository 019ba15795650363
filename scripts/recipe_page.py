"""Writes docs/recipe.md, the reference of all recipe keys, from the schema; --check only says whether it is current.

python scripts/recipe_page.py [--check]
"""

import argparse
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from askd_ray.config.schema import Recipe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
INTRODUCTION = """# Recipe reference

All keys of a recipe. `--set a.b=value` sets one; `askd presets` lists the objectives.
This page is made from the schema by `python scripts/recipe_page.py`.
"""


def page() -> str:
    """Return the page: a heading and a table for each section, nested ones after their parents."""
    parts = [INTRODUCTION]
    known = set[type[BaseModel]]()
    for path, section in sections(Recipe, ""):
        if section in known:  # an arm of a study is an objective
            continue
        known.add(section)
        parts.append(f"\n## {f'`{path}`' if path else 'Top level'}\n\n{text_of(section)}\n")
        described = any(field.description for field in section.model_fields.values())
        columns = ["key", "type", "default", *["meaning"] * described]
        parts.append(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
        fields = {name: f for name, f in section.model_fields.items() if type_of(f.annotation) != "section"}
        parts += [row(path, name, field, described) for name, field in fields.items()]
    return "".join(parts)


def sections(section: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    """Return a section and those below it, with their paths; `[]` stands for the items of a list."""
    found = [(path, section)]
    for name, field in section.model_fields.items():
        for inner, suffix in models_in(field.annotation):
            found += sections(inner, f"{path}.{name}{suffix}".lstrip("."))
    return found


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


def row(path: str, name: str, field: FieldInfo, described: bool) -> str:
    """Return a field as a row of its section's table."""
    cells = [f"`{path}.{name}`".replace("`.", "`"), type_of(field.annotation), default_of(field)]
    cells += [markdown(" ".join((field.description or "").split()))] if described else []
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


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
    return getattr(annotation, "__name__", str(annotation))


def default_of(field: FieldInfo) -> str:
    """Return a field's default as it is written."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "needed"
    if isinstance(value, BaseModel):
        return ""
    text = "null" if value is None else str(value) if not isinstance(value, tuple) else str(list(value))
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
