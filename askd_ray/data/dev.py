"""The clips of dev: its utterances, and the clips derived from them. A rank reads only its part of the audio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from askd_ray.data.labels import LabelKey, check_labels, read_label_texts
from askd_ray.data.schema import DerivedKind, Utterance
from askd_ray.data.shards import derived_paths, read_shard, read_table, shard_paths
from askd_ray.location import Location, map_concurrently


class DevGroup(NamedTuple):
    """Dev clips that are scored together: utterances of a domain, or all derived clips of a kind."""

    derived: DerivedKind
    domain: str

    @classmethod
    def of(cls, utterance: Utterance) -> "DevGroup":
        """Return the group of a clip."""
        return cls(utterance.derived, "" if utterance.derived else utterance.domain)


class GroupSize(NamedTuple):
    """The number of clips of a group, and their length."""

    clips: int = 0
    seconds: float = 0.0


class DevPart(NamedTuple):
    """The part of dev that a rank decodes: of the clips in the order of their lengths, every ``world_size``-th block.

    A block has ``block`` neighbours, which share few windows and so make full batches.
    """

    rank: int = 0
    world_size: int = 1
    block: int = 1

    def rows(self, lengths: Sequence[tuple[float, str]]) -> list[int]:
        """Return the numbers of the clips of this part, sorted; ``lengths``: the duration and the id of each clip."""
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        return sorted(row for n, row in enumerate(by_length) if n // self.block % self.world_size == self.rank)


WHOLE = DevPart()
"""All of dev, for a process that decodes it alone."""


@dataclass(frozen=True)
class DevClips:
    """Dev as one rank sees it: the ``clips`` of its part, and the sizes of the groups of all of dev."""

    clips: Sequence[Utterance]
    groups: Mapping[DevGroup, GroupSize]

    @property
    def n_utterances(self) -> int:
        """The number of utterances of all of dev."""
        return sum(size.clips for group, size in self.groups.items() if not group.derived)

    @property
    def n_derived(self) -> int:
        """The number of derived clips of all of dev."""
        return sum(size.clips for group, size in self.groups.items() if group.derived)

    @property
    def silent_min(self) -> float:
        """The minutes of the clips without speech of all of dev."""
        return sum(size.seconds for group, size in self.groups.items() if group.derived == "non_speech") / 60


class _Row(NamedTuple):
    """A clip of dev without its audio; ``text`` is that of a derived clip's label."""

    path: Location
    row: int
    id: str
    duration_s: float
    group: DevGroup
    text: str | None


def read_dev(shards: Location, labels: Location, key: LabelKey, part: DevPart = WHOLE) -> DevClips:
    """Return the utterances of dev, then the clips that are derived from them and have a reference.

    Only the audio of ``part`` is kept: shards are read one at a time. The texts of derived clips are those of their
    labels, which must have been made with the settings ``key``; a clip without speech has the empty text.

    Raises :class:`AskdError` when shards or labels are missing, damaged or stale.
    """
    rows = [row for path in map_concurrently(_rows, shard_paths(shards, "dev")) for row in path]
    rows += [row for path in derived_paths(shards, "dev") for row in _derived_rows(path, labels / path.name, key)]
    wanted = [rows[n] for n in part.rows([(row.duration_s, row.id) for row in rows])]
    clips: list[Utterance] = []
    for path, group in groupby(wanted, key=lambda row: row.path):
        of_shard = list(group)
        utterances = read_shard(path, [row.row for row in of_shard])
        clips += [u if r.text is None else replace(u, text=r.text) for u, r in zip(utterances, of_shard, strict=True)]
    return DevClips(tuple(clips), group_sizes([(row.group, row.duration_s) for row in rows]))


def group_sizes(clips: Sequence[tuple[DevGroup, float]]) -> dict[DevGroup, GroupSize]:
    """Return the sizes of groups; ``clips``: the group and the length of each clip, in seconds."""
    sizes: dict[DevGroup, GroupSize] = {}
    for group, duration_s in clips:
        size = sizes.get(group, GroupSize())
        sizes[group] = GroupSize(size.clips + 1, size.seconds + duration_s)
    return sizes


def _rows(path: Location) -> list[_Row]:
    rows = read_table(path, ["id", "duration_s", "domain"]).to_pylist()
    return [_Row(path, n, r["id"], r["duration_s"], DevGroup("", r["domain"]), None) for n, r in enumerate(rows)]


def _derived_rows(path: Location, labels: Location, key: LabelKey) -> list[_Row]:
    check_labels(labels, path, key)
    rows = enumerate(
        zip(read_table(path, ["id", "duration_s", "kind"]).to_pylist(), read_label_texts(labels), strict=True)
    )
    return [
        _Row(path, n, r["id"], r["duration_s"], DevGroup(r["kind"], ""), text)
        for n, (r, text) in rows
        if text is not None
    ]
