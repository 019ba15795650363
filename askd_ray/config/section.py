"""The base of all sections of a recipe: frozen, without unknown keys, and without settings that nothing would read."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


def check_order(name: str, bounds: tuple[float, float]) -> None:
    """Check the field ``name``, which is [min, max].

    Raises :class:`ValueError` when the first exceeds the second.
    """
    if bounds[0] > bounds[1]:
        raise ValueError(f"{name} is [min, max]: the first must not exceed the second")


class Section(BaseModel):
    """Base of all sections of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def refuse_unread(self, fields: Iterable[str], why: str) -> None:
        """Refuse values other than the default for fields that nothing would read.

        Raises :class:`ValueError` that names the field and the reason ``why`` nothing reads it.
        """
        for name in fields:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                raise ValueError(f"{name} = {getattr(self, name)!r} would be ignored: {why}")
