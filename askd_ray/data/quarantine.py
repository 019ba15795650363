"""Collect the rows that were set aside, in the order of the data."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.part_check import DUPLICATE_ID
from askd_ray.data.placement import GROUPS, PLACED_COLUMNS, Group, Placement, groups_of
from askd_ray.data.row_check import DEV_IS_FULL, NO_REFERENCE, Rejected
from askd_ray.data.shard_plan import CountedPart

DUPLICATE_AUDIO = "duplicate audio"
"""The quarantine reason of a row with the audio of an earlier row: with another id, it could go to another split."""


@dataclass(frozen=True)
class SetAsideRows:
    """Returns the rows of a part that are set aside, whatever their split is."""

    parts: CheckedParts

    def __call__(self, part: CountedPart) -> list[Rejected]:
        """Return the rows in order."""
        rows = self.parts.rows(part.key, ["id", "source", "reason", "detail"])
        given = dict(zip(part.same_audio.tolist(), self._ids(part.first), strict=True))
        same_id = set(part.same_id.tolist())
        reasons = rows["reason"].to_pylist()
        numbers = [n for n, reason in enumerate(reasons) if reason or n in same_id or n in given]
        found: list[Rejected] = []
        for n, row in zip(numbers, rows.take(numbers).to_pylist(), strict=True):
            if n in same_id:
                row |= {"reason": DUPLICATE_ID, "detail": ""}
            elif n in given:
                row |= {"reason": DUPLICATE_AUDIO, "detail": f"the same as {given[n]}"}
            found.append(Rejected(**row))
        return found

    def _ids(self, places: tuple[tuple[str, int], ...]) -> Iterator[str]:
        last, ids = "", None
        for key, row in places:
            if ids is None or key != last:
                last, ids = key, self.parts.rows(key, ["id"])["id"]
            yield ids[row].as_py()


@dataclass(frozen=True)
class UnusedRows:
    """Returns the rows of a part that their split does not use: those of ``groups``."""

    parts: CheckedParts
    placement: Placement
    groups: tuple[int, ...]

    def __call__(self, part: CountedPart) -> list[Rejected]:
        """Return the rows in order."""
        rows = self.parts.rows(part.key, ["id", "source", *PLACED_COLUMNS])
        groups = groups_of(rows, part.repeats, self.placement)
        numbers = np.flatnonzero(np.isin(groups, self.groups))
        ids, sources = (rows[name].take(numbers).to_pylist() for name in ("id", "source"))
        reasons = [_reason(GROUPS[group]) for group in groups[numbers].tolist()]
        return [Rejected(*row, "") for row in zip(ids, sources, reasons, strict=True)]


def _reason(group: Group) -> str:
    return DEV_IS_FULL if group.left_out else NO_REFERENCE[group.split]
