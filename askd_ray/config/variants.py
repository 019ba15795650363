"""Sections that depend on a kind: a union of sections, one of which a tag such as ``kind`` or ``schedule`` chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from askd_ray.config.section import Section


@dataclass(frozen=True)
class Variants:
    """The sections that a recipe's field chooses from: for each value of its ``tag`` the section with its settings."""

    tag: str
    sections: Mapping[str, type[Section]]

    @classmethod
    def of(cls, field: FieldInfo) -> "Variants | None":
        """Return the variants of a field, or None if it has no tag."""
        if not isinstance(field.discriminator, str):
            return None
        tag, union = field.discriminator, cast(tuple[type[Section], ...], get_args(field.annotation))
        return cls(tag, {v: section for section in union for v in get_args(section.model_fields[tag].annotation)})

    def chosen(self, values: Mapping[str, Any]) -> type[Section] | None:
        """Return the section that the values choose, or None if they name none."""
        return self.sections.get(str(values.get(self.tag)))

    def readers(self, name: str) -> list[str]:
        """Return the values of the tag whose section has the field ``name``."""
        return [value for value, section in self.sections.items() if name in section.model_fields]

    def without_other_defaults(self, values: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values without those that only other sections have, if they are the default or the preset's.

        A recipe that a run has written names every field; so it can be used with another kind.
        """
        chosen = self.chosen(values)
        if chosen is None:
            return dict(values)
        fields = (field for section in self.sections.values() for field in section.model_fields.items())
        others = ((name, field.default) for name, field in fields if name not in chosen.model_fields)
        unread = {
            name
            for name, default in others
            if name in values and values[name] in (default, to_jsonable_python(default), preset.get(name, default))
        }
        return {name: value for name, value in values.items() if name not in unread}
