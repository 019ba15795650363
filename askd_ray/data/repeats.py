"""Find rows that repeat the id or the audio of an earlier row, in memory for a part of the rows at a time.

Each task reads 16-byte hashes and takes one part of their range, a bucket. It sorts the hashes of its bucket, and equal
ones become neighbours: no process holds the ids or hashes of all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from askd_ray.data.checked_parts import CheckedParts, PartSummary
from askd_ray.data.placement import SET_ASIDE
from askd_ray.data.task_runner import TaskRunner

MAX_ROWS = 1 << 23
"""The rows in one bucket: about 700 MB of memory."""


def _none() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat an earlier row, as positions in the whole data, sorted; ``first`` is the earliest such row."""

    rows: NDArray[np.int64] = field(default_factory=_none)
    first: NDArray[np.int64] = field(default_factory=_none)

    def between(self, start: int, stop: int) -> "Repeats":
        """Return the repeats in a range of positions; their ``rows`` are counted from ``start``."""
        low, high = np.searchsorted(self.rows, [start, stop])
        return Repeats(self.rows[low:high] - start, self.first[low:high])


@dataclass(frozen=True)
class _Bucket:
    """Finds the repeats of one bucket. ``left_out`` are positions of rows that do not count."""

    parts: CheckedParts
    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    hashed: Literal["id", "audio"]
    n_buckets: int
    left_out: Repeats

    def __call__(self, bucket: int) -> Repeats:
        high, low, positions = list[NDArray[np.uint64]](), list[NDArray[np.uint64]](), list[NDArray[np.int64]]()
        for key, start in zip(self.keys, self.starts.tolist(), strict=True):
            rows = self.parts.rows(key, ["group", f"{self.hashed}_high", f"{self.hashed}_low"])
            hashes = rows[f"{self.hashed}_high"].to_numpy()
            counts = hashes % np.uint64(self.n_buckets) == bucket
            if self.hashed == "audio":
                counts &= rows["group"].to_numpy() != SET_ASIDE
            counts[self.left_out.between(start, start + len(hashes)).rows] = False
            high.append(hashes[counts])
            low.append(rows[f"{self.hashed}_low"].to_numpy()[counts])
            positions.append(start + np.flatnonzero(counts))
        return _equal(np.concatenate(high), np.concatenate(low), np.concatenate(positions))


def _equal(high: NDArray[np.uint64], low: NDArray[np.uint64], positions: NDArray[np.int64]) -> Repeats:
    """Return the rows whose hash an earlier row has; ``positions`` are sorted."""
    order = np.lexsort((low, high))  # stable: equal hashes stay in the order of the data
    high, low, positions = high[order], low[order], positions[order]
    repeated = np.zeros(len(order), bool)
    repeated[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    first = positions[np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))]
    return _sorted(positions[repeated], first[repeated])


def _sorted(rows: NDArray[np.int64], first: NDArray[np.int64]) -> Repeats:
    order = np.argsort(rows)
    return Repeats(rows[order], first[order])


def find_repeats(
    runner: TaskRunner,
    parts: CheckedParts,
    summaries: Sequence[PartSummary],
    hashed: Literal["id", "audio"],
    left_out: Repeats,
) -> Repeats:
    """Return the rows whose id or audio an earlier row has.

    Rows in ``left_out`` do not count, and for audio only usable rows do.
    """
    starts = starts_of(summaries)
    n_buckets = max(1, -(-int(starts[-1]) // MAX_ROWS))
    keys = tuple(summary.key for summary in summaries)
    find = _Bucket(parts, keys, starts[:-1], hashed, n_buckets, left_out)
    found = list(runner.map(find, range(n_buckets), memory_mb=1024)) if keys else []
    return _sorted(*(np.concatenate([_none(), *(getattr(r, name) for r in found)]) for name in ("rows", "first")))


def starts_of(summaries: Sequence[PartSummary]) -> NDArray[np.int64]:
    """Return the position of the first row of each part in the whole data, and the number of all rows."""
    return np.cumsum([0, *(summary.n_rows for summary in summaries)], dtype=np.int64)
