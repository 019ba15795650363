"""Make shards of sources: check their parts, find repeats, decide the splits, and write quarantine and shards.

Only the check of a part reads audio of the sources, and parts do not depend on one another. What depends on all rows is
decided from hashes and counts, so the shards are the same for any size of parts and any number of machines.
"""

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from askd_ray.config.schema import Recipe
from askd_ray.data.checked_parts import CheckedParts, PartSummary
from askd_ray.data.model_languages import languages_of_models, refuse_languages
from askd_ray.data.part_check import CheckPart
from askd_ray.data.placement import GROUPS_IN_TURN, GroupCounts, Placement
from askd_ray.data.prepared import PrepareCounts
from askd_ray.data.quarantine import SetAsideRows, UnusedRows
from askd_ray.data.repeats import Repeats, find_repeats, starts_of
from askd_ray.data.row_check import Rejected
from askd_ray.data.schema import SPLITS
from askd_ray.data.shard_plan import (
    MAX_SHARD_MB,
    CountedPart,
    CountPart,
    WriteShard,
    parts_with_repeats,
    plan_shards,
    shard_size,
)
from askd_ray.data.sources import SourcePart, SplitNames, Survey, source_parts
from askd_ray.data.task_runner import TaskRunner
from askd_ray.files import digest
from askd_ray.location import Location
from askd_ray.progress import bar
from askd_ray.runs import versions

QUARANTINE = "quarantine.jsonl"
"""The file beside the shards with one line for every row that was set aside (id, source, reason, detail)."""

PART_ROWS = 1024
"""The rows of a part, about; a tar, or a row group of a Parquet file, is never divided."""

# Settings that do not change checked parts.
_AFTER_THE_CHECK = {"sources", "max_dev_hours", "utterances_per_shard", "max_quarantine_share", "derive"}


@dataclass(frozen=True)
class ShardBuild:
    """What shards are made of: a recipe's sources, as surveyed, through checked parts; ``runner`` does the work."""

    recipe: Recipe
    surveyed: Survey
    parts: CheckedParts
    runner: TaskRunner
    part_rows: int = PART_ROWS

    def write(self, folder: Location) -> dict[str, Any]:
        """Write shards and the quarantine file into a folder; return the counts, as `askd prepare` records them.

        Raises :class:`AskdError`: an unusable source, a split that no row of its source has, or a language that a model
        of the recipe does not have.
        """
        checked = list(self._check_parts())
        parts = self._with_repeats(checked)
        found, totals = self._count(parts, None)
        placement = Placement.of(totals, self.recipe.data.max_dev_hours)
        if placement.kept_dev_share < 1.0:
            found, totals = self._count(parts, placement)
        quarantined = Counter[str]()
        with (folder / QUARANTINE).output() as quarantine:
            for rejected in self._set_aside(checked, found, placement):
                quarantined[rejected.reason] += 1
                line = json.dumps(vars(rejected), ensure_ascii=False)
                quarantine.write(f"{line}\n".encode())
        n_read, by_split = sum(part.n_rows for part in checked), placement.split_counts(totals)
        counts = PrepareCounts(n_read, quarantined, by_split, placement.languages(totals))
        n_used, n_bytes = placement.used(totals)
        assert n_read == n_used + quarantined.total()
        size = self.recipe.data.utterances_per_shard or shard_size(n_used, n_bytes)
        return counts.result() | {"shards": self._write_shards(folder, found, placement, size, n_used)}

    def _check_parts(self) -> Iterator[PartSummary]:
        """Check the parts that are not checked yet, and yield the summaries of all in order."""
        languages, names, last = set[str](), SplitNames(False), None
        for part, summary in self._summaries():
            for language, row_id in summary.languages.items():
                if language not in languages:
                    refuse_languages_of(self.recipe, {language: 1}, f"prepare: row {row_id}:")
            languages |= summary.languages.keys()
            if last is not None and part.number != last.number:
                names.check(last.source, last.label)
                names = SplitNames(False)
            names.add(summary.names)
            last = part
            yield summary
        if last is not None:
            names.check(last.source, last.label)

    def _summaries(self) -> Iterator[tuple[SourcePart, PartSummary]]:
        data, pseudo = self.recipe.data, self.recipe.targets.kind == "pseudo"
        settings = digest([data.model_dump(mode="json", exclude=_AFTER_THE_CHECK), pseudo, versions()])
        parts = source_parts(data.sources, self.surveyed.of_sources, not pseudo, self.part_rows)
        started = deque[SourcePart]()
        with bar("Preparing", self.surveyed.n_rows, "utterances") as progress:
            on_rows = progress.advance if self.runner.is_local else None
            check = CheckPart(self.parts, data, pseudo, settings, self.runner.threads, on_rows)
            for summary in self.runner.map(check, _noted(parts, started)):
                if on_rows is None:
                    progress.advance(summary.n_rows)
                yield started.popleft(), summary

    def _with_repeats(self, checked: Sequence[PartSummary]) -> list[CountedPart]:
        same_id = find_repeats(self.runner, self.parts, checked, "id", Repeats())
        same_audio = find_repeats(self.runner, self.parts, checked, "audio", same_id)
        keys = [summary.key for summary in checked]
        return list(parts_with_repeats(keys, starts_of(checked), same_id, same_audio))

    def _count(
        self, parts: Sequence[CountedPart], placement: Placement | None
    ) -> tuple[list[CountedPart], GroupCounts]:
        """Return the parts with their counts, and the counts of all."""
        found, totals = list[CountedPart](), GroupCounts()
        for part, counts in zip(parts, self.runner.map(CountPart(self.parts, placement), parts), strict=True):
            totals.add(counts)
            found.append(replace(part, utterances=tuple(counts.utterances.tolist())))
        return found, totals

    def _set_aside(
        self, checked: Sequence[PartSummary], found: Sequence[CountedPart], placement: Placement
    ) -> Iterator[Rejected]:
        """Yield all rows that are set aside: in the order of the data, and last those that their split cannot use."""
        affected = [part for part, has in zip(found, checked, strict=True) if has.n_set_aside or len(part.repeats)]
        for rows in self.runner.map(SetAsideRows(self.parts), affected):
            yield from rows
        for turn in range(len(GROUPS_IN_TURN)):
            groups = placement.unusable(turn)
            affected = [part for part in found if any(part.utterances[group] for group in groups)]
            for rows in self.runner.map(UnusedRows(self.parts, placement, groups), affected):
                yield from rows

    def _write_shards(
        self, folder: Location, found: Sequence[CountedPart], placement: Placement, size: int, n_utterances: int
    ) -> dict[str, int]:
        """Write the shards, and return their number by split."""
        plan, n_shards = list(plan_shards(found, placement, size)), {str(split): 0 for split in SPLITS}
        write = WriteShard(self.parts, folder, placement)
        with bar("Writing shards", n_utterances, "utterances") as progress:
            for shard, n in zip(plan, self.runner.map(write, plan, memory_mb=4 * MAX_SHARD_MB), strict=True):
                n_shards[shard.split] += 1
                progress.advance(n)
        return n_shards


def refuse_languages_of(recipe: Recipe, spoken: dict[str, int], where: str) -> None:
    """Raise :class:`AskdError` if a model of the recipe does not have a language of the data."""
    for model, languages in languages_of_models(recipe).items():
        refuse_languages(spoken, model, languages, where)


def _noted(parts: Iterator[SourcePart], started: deque[SourcePart]) -> Iterator[SourcePart]:
    for part in parts:
        started.append(part)
        yield part
