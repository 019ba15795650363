"""Plan the shards from the counts of all parts, and write them: the same shards for any size of the parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.placement import (
    COUNTED_COLUMNS,
    GROUPS_IN_TURN,
    PLACED_COLUMNS,
    GroupCounts,
    Placement,
    count_groups,
    groups_of,
)
from askd_ray.data.repeats import Repeats
from askd_ray.data.schema import SHARD_SCHEMA, SPLITS, Split
from askd_ray.data.shards import BLOCK_ROWS, write_table
from askd_ray.location import Location

MAX_SHARD_MB = 256
"""The size of shards of large data, at most; a mean utterance decides, so that some are larger."""

_SHARD_BYTES = 192 << 20
_MIN_UTTERANCES = 64
_MIN_SHARDS = 1024  # tasks and shuffling need many shards, so they grow only in data with more


@dataclass(frozen=True)
class CountedPart:
    """A checked part, with its rows that repeat the id or the audio of an earlier row of the data.

    ``first`` has key and row of the earlier row for each of ``same_audio``. ``utterances`` counts by group.
    """

    key: str
    same_id: NDArray[np.int64]
    same_audio: NDArray[np.int64]
    first: tuple[tuple[str, int], ...]
    utterances: tuple[int, ...] = ()

    @property
    def repeats(self) -> NDArray[np.int64]:
        """All rows that repeat an earlier one."""
        return np.concatenate([self.same_id, self.same_audio])


def parts_with_repeats(
    keys: list[str], starts: NDArray[np.int64], same_id: Repeats, same_audio: Repeats
) -> Iterator[CountedPart]:
    """Yield the parts with their repeats; ``starts`` are the positions of their first rows, and the end."""
    for key, start, stop in zip(keys, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        audio = same_audio.between(start, stop)
        of_part = np.searchsorted(starts, audio.first, side="right") - 1
        rows: list[int] = (audio.first - starts[of_part]).tolist()
        first = tuple((keys[n], row) for n, row in zip(of_part.tolist(), rows, strict=True))
        yield CountedPart(key, same_id.between(start, stop).rows, audio.rows, first)


@dataclass(frozen=True)
class CountPart:
    """Counts the rows of a part by group, without repeats; see :func:`~askd_ray.data.placement.groups_of`."""

    parts: CheckedParts
    placement: Placement | None

    def __call__(self, part: CountedPart) -> GroupCounts:
        """Return the counts."""
        rows = self.parts.rows(part.key, COUNTED_COLUMNS)
        return count_groups(rows, groups_of(rows, part.repeats, self.placement))


@dataclass(frozen=True)
class ShardSlice:
    """Rows ``start`` to ``stop`` of a part, counted among its rows of ``groups``."""

    part: CountedPart
    groups: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard and the rows of parts that it consists of, in order."""

    split: Split
    number: int
    slices: tuple[ShardSlice, ...]


def shard_size(n_utterances: int, n_bytes: int) -> int:
    """Return the number of utterances in a shard: 64 of small data, and about 192 MiB of audio of large data."""
    full = _SHARD_BYTES * n_utterances // max(1, n_bytes)
    size = min(full, n_utterances // _MIN_SHARDS)
    return max(_MIN_UTTERANCES, size - size % _MIN_UTTERANCES)


def plan_shards(parts: Sequence[CountedPart], placement: Placement, size: int) -> Iterator[ShardPlan]:
    """Yield the shards of all splits with ``size`` utterances each, the last one of a split with the rest."""
    for split in SPLITS:
        number, n_missing, slices = 0, size, list[ShardSlice]()
        for rows in _rows_of_split(parts, placement, split):
            start = 0
            while start < rows.stop:
                stop = min(rows.stop, start + n_missing)
                slices.append(replace(rows, start=start, stop=stop))
                n_missing -= stop - start
                start = stop
                if not n_missing:
                    yield ShardPlan(split, number, tuple(slices))
                    number, n_missing, slices = number + 1, size, []
        if slices:
            yield ShardPlan(split, number, tuple(slices))


def _rows_of_split(parts: Sequence[CountedPart], placement: Placement, split: Split) -> Iterator[ShardSlice]:
    """Yield all rows of a split, in the order of its shards."""
    for turn in range(len(GROUPS_IN_TURN)):
        groups = placement.groups(split, turn)
        for part in parts if groups else ():
            n = sum(part.utterances[group] for group in groups)
            if n:
                yield ShardSlice(part, groups, 0, n)


@dataclass(frozen=True)
class WriteShard:
    """Writes a shard into a folder, and returns the number of utterances."""

    parts: CheckedParts
    folder: Location
    placement: Placement

    def __call__(self, plan: ShardPlan) -> int:
        """Write the shard."""
        table = pa.concat_tables([self._read(rows) for rows in plan.slices]).combine_chunks()
        split = pa.array([plan.split] * table.num_rows, pa.string())
        table = table.set_column(SHARD_SCHEMA.get_field_index("split"), SHARD_SCHEMA.field("split"), split)
        write_table(self.folder / f"{plan.split}-{plan.number:05d}.parquet", table, BLOCK_ROWS)
        return table.num_rows

    def _read(self, rows: ShardSlice) -> pa.Table:
        facts = self.parts.rows(rows.part.key, [*PLACED_COLUMNS, "batch", "batch_row"])
        groups = groups_of(facts, rows.part.repeats, self.placement)
        numbers = np.flatnonzero(np.isin(groups, rows.groups))[rows.start : rows.stop]
        batches, batch_rows = (facts[name].to_numpy()[numbers].tolist() for name in ("batch", "batch_row"))
        return self.parts.utterances(rows.part.key, batches, batch_rows)
