"""Check the rows of a part of the sources: each becomes a usable utterance, or is set aside with a reason."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from askd_ray.config.data import Data
from askd_ray.data.checked_parts import CheckedParts, Outcome, PartSummary
from askd_ray.data.row_check import NO_REFERENCE, NO_TEXT, Rejected, RowLimits, check_row, clean_row
from askd_ray.data.sources import SourcePart, SourceRow, SplitNames
from askd_ray.data.split import assign_split
from askd_ray.data.task_runner import map_in_order
from askd_ray.files import digest

DUPLICATE_ID = "duplicate id"
"""The quarantine reason of a row with the id of an earlier row."""


@dataclass(frozen=True)
class CheckPart:
    """Checks a part and writes its files, unless they are there. ``settings`` is a hash of what else decides them.

    With ``pseudo`` targets train rows need no text; dev and test rows always need one. ``on_rows`` gets the number of
    rows that are finished.
    """

    parts: CheckedParts
    data: Data
    pseudo: bool
    settings: str
    threads: int = 1
    on_rows: Callable[[int], None] | None = None

    def __call__(self, part: SourcePart) -> PartSummary:
        """Return the summary of the checked part.

        Raises :class:`AskdError` as :meth:`SourcePart.read` does, and when the storage of audio cannot be read.
        """
        key = digest([self.settings, part.key])
        summary = self.parts.summary(key)
        if summary is None:
            names = SplitNames(part.source.split is None)
            rows = _without_repeated_ids(part.read(names, needs_text=not self.pseudo))
            self.parts.write(key, names, self._reported(map_in_order(self._outcome, rows, self.threads)))
            summary = self.parts.summary(key)
            assert summary is not None
        elif self.on_rows is not None:
            self.on_rows(summary.n_rows)
        return summary

    def _reported(self, outcomes: Iterable[tuple[str, Outcome]]) -> Iterator[tuple[str, Outcome]]:
        for outcome in outcomes:
            yield outcome
            if self.on_rows is not None:
                self.on_rows(1)

    def _outcome(self, row: SourceRow | Rejected) -> tuple[str, Outcome]:
        """Return a row's position in its source and its result."""
        cleaned = row if isinstance(row, Rejected) else clean_row(row)
        if isinstance(cleaned, Rejected):
            return cleaned.source, cleaned
        where = cleaned.where
        assignment = assign_split(cleaned.split, cleaned.speaker, cleaned.text, self.data)
        set_aside = partial(Rejected, cleaned.id, where, detail="")
        if not cleaned.text and not self.pseudo:
            return where, set_aside(reason=NO_TEXT)
        if not cleaned.text and assignment.split != "train" and not assignment.spare:
            return where, set_aside(reason=NO_REFERENCE[assignment.split])
        checked = check_row(cleaned, RowLimits.of(self.data), assignment.split)
        return where, checked if isinstance(checked, Rejected) else (checked, assignment)


def _without_repeated_ids(rows: Iterable[SourceRow]) -> Iterator[SourceRow | Rejected]:
    """Replace rows whose id is that of an earlier row of the part: their audio need not be read."""
    seen: set[bytes] = set()
    for row in rows:
        hashed = hashlib.blake2b(row.id.encode(errors="surrogatepass"), digest_size=16).digest()
        yield Rejected(row.id, row.where, DUPLICATE_ID, "") if hashed in seen else row
        seen.add(hashed)
