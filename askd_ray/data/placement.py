"""Where the rows of all parts go: some splits are known only when all rows are counted."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.data.prepared import SplitCounts
from askd_ray.data.schema import SPLITS, Split
from askd_ray.data.split import SplitAssignment

SET_ASIDE = -1
"""The group of a row that is not usable, whatever the other rows are."""


@dataclass(frozen=True)
class Group:
    """Rows that go to the same split. ``spare`` is that of :class:`~askd_ray.data.split.SplitAssignment`."""

    split: Split
    spare: bool = False
    has_text: bool = True  # matters for spare rows only: dev and test need texts
    left_out: bool = False  # because dev is full


GROUPS: tuple[Group, ...] = (
    Group("train"),
    Group("dev"),
    Group("test"),
    Group("dev", spare=True),
    Group("dev", spare=True, has_text=False),
    Group("test", spare=True),
    Group("test", spare=True, has_text=False),
    Group("dev", left_out=True),
)
"""All groups."""

GROUPS_IN_TURN: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4), (5, 6), (7,))
"""The numbers of groups whose rows keep the order of the data among them. A split has the rows of each in turn: spare
ones come last."""

PLACED_COLUMNS = ("group", "dev_fraction")
"""The columns of a part's rows that :func:`groups_of` reads."""

_MAX_ARRAYS = 256  # of speakers; to merge them one by one would take a time that is quadratic in the parts

COUNTED_COLUMNS = (*PLACED_COLUMNS, "marked", "n_samples", "n_bytes", "has_text", "language", "speaker")
"""The columns that :func:`count_groups` and :func:`groups_of` read."""


def group_of(assignment: SplitAssignment, has_text: bool) -> int:
    """Return the number of a row's group in :data:`GROUPS`."""
    return GROUPS.index(Group(assignment.split, assignment.spare, has_text or not assignment.spare))


def different(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return the different hashes of several arrays, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))


def _zeros() -> NDArray[np.int64]:
    return np.zeros(len(GROUPS), np.int64)


@dataclass
class GroupCounts:
    """Counts by group. ``speakers`` are 64-bit hashes of names in a few arrays: 8 bytes for each name."""

    utterances: NDArray[np.int64] = field(default_factory=_zeros)
    marked: NDArray[np.int64] = field(default_factory=_zeros)
    samples: NDArray[np.int64] = field(default_factory=_zeros)
    n_bytes: NDArray[np.int64] = field(default_factory=_zeros)
    without_text: NDArray[np.int64] = field(default_factory=_zeros)
    languages: list[Counter[str]] = field(default_factory=lambda: [Counter[str]() for _ in GROUPS])
    speakers: list[list[NDArray[np.uint64]]] = field(default_factory=lambda: [[] for _ in GROUPS])

    def add(self, other: "GroupCounts") -> None:
        """Add the counts of further rows."""
        for name in ("utterances", "marked", "samples", "n_bytes", "without_text"):
            getattr(self, name)[:] += getattr(other, name)
        for group, (languages, speakers) in enumerate(zip(other.languages, other.speakers, strict=True)):
            self.languages[group] += languages
            self.speakers[group] += speakers
            if len(self.speakers[group]) > _MAX_ARRAYS:
                self.speakers[group] = [different(self.speakers[group])]


def count_groups(rows: pa.Table, groups: NDArray[np.int8]) -> GroupCounts:
    """Return the counts of a part's rows; ``groups`` is that of each row."""
    kept = groups != SET_ASIDE
    of = groups[kept]

    def total(column: NDArray[np.int64]) -> NDArray[np.int64]:
        totals = _zeros()
        np.add.at(totals, of, column[kept])
        return totals

    columns = {name: rows[name].to_numpy() for name in COUNTED_COLUMNS if name not in ("group", "language")}
    counts = GroupCounts(
        utterances=total(np.ones(len(groups), np.int64)),
        marked=total(columns["marked"].astype(np.int64)),
        samples=total(columns["n_samples"]),
        n_bytes=total(columns["n_bytes"]),
        without_text=total((~columns["has_text"]).astype(np.int64)),
    )
    for group, language in zip(groups.tolist(), rows["language"].to_pylist(), strict=True):
        if group != SET_ASIDE:
            counts.languages[group][language] += 1
    for group in range(len(GROUPS)):
        names = columns["speaker"][groups == group]
        counts.speakers[group] = [np.unique(names[names != 0])]
    return counts


@dataclass(frozen=True)
class Placement:
    """The split of each group of :data:`GROUPS`; None if its rows cannot be used: they need a text, or dev is full.

    ``kept_dev_share`` of dev's rows are kept: those with a smaller :func:`~askd_ray.data.split.dev_fraction`.
    """

    splits: tuple[Split | None, ...]
    kept_dev_share: float = 1.0

    @classmethod
    def of(cls, counts: GroupCounts, max_dev_hours: float | None) -> "Placement":
        """Return where rows go: spare ones to their split if no row is marked with it, else to train.

        If dev is then longer than its limit, a part of it is kept.
        """
        splits: list[Split | None] = []
        for group in GROUPS:
            if group.spare and counts.marked[GROUPS.index(Group(group.split))]:
                splits.append("train")
            else:
                splits.append(group.split if group.has_text and not group.left_out else None)
        dev_s = int(counts.samples[[split == "dev" for split in splits]].sum()) / SAMPLE_RATE_HZ
        max_dev_s = math.inf if max_dev_hours is None else 3600.0 * max_dev_hours
        return cls(tuple(splits), max_dev_s / dev_s if dev_s > max_dev_s else 1.0)

    def groups(self, split: Split, turn: int) -> tuple[int, ...]:
        """Return the groups of ``GROUPS_IN_TURN[turn]`` that go to a split."""
        return tuple(group for group in GROUPS_IN_TURN[turn] if self.splits[group] == split)

    def unusable(self, turn: int) -> tuple[int, ...]:
        """Return the groups of ``GROUPS_IN_TURN[turn]`` that cannot be used."""
        return tuple(group for group in GROUPS_IN_TURN[turn] if self.splits[group] is None)

    def used(self, counts: GroupCounts) -> tuple[int, int]:
        """Return the number of utterances in all splits, and the bytes of their audio."""
        groups = [number for number, split in enumerate(self.splits) if split is not None]
        return int(counts.utterances[groups].sum()), int(counts.n_bytes[groups].sum())

    def split_counts(self, counts: GroupCounts) -> dict[Split, SplitCounts]:
        """Return the counts by split."""
        by_split: dict[Split, SplitCounts] = {}
        for split in SPLITS:
            groups = [number for number, placed in enumerate(self.splits) if placed == split]
            spare = [number for number in groups if GROUPS[number].spare and split == "train"]
            by_split[split] = SplitCounts(
                utterances=int(counts.utterances[groups].sum()),
                seconds=int(counts.samples[groups].sum()) / SAMPLE_RATE_HZ,
                marked=int(counts.marked[groups].sum() + counts.utterances[spare].sum()),
                without_text=int(counts.without_text[groups].sum()),
                speakers=different([names for number in groups for names in counts.speakers[number]]),
            )
        return by_split

    def languages(self, counts: GroupCounts) -> Counter[str]:
        """Return the number of utterances by language."""
        placed = [counts.languages[number] for number, split in enumerate(self.splits) if split is not None]
        return sum(placed, Counter[str]())


def groups_of(rows: pa.Table, repeats: NDArray[np.int64], placement: Placement | None) -> NDArray[np.int8]:
    """Return the group of each row of a part; ``repeats`` are the rows that repeat an earlier one.

    Without a ``placement``, nothing is left out of dev.
    """
    groups = rows["group"].to_numpy().copy()
    groups[repeats] = SET_ASIDE
    if placement is not None and placement.kept_dev_share < 1.0:
        dev = [number for number, split in enumerate(placement.splits) if split == "dev"]
        left_out = np.isin(groups, dev) & (rows["dev_fraction"].to_numpy() >= placement.kept_dev_share)
        groups[left_out] = GROUPS.index(Group("dev", left_out=True))
    return groups
