"""The row index: what planning needs of every labelled train utterance, in one memory-mapped file.

`askd label` writes it beside the labels, and every process of a training maps the same file. It takes 24 bytes an
utterance: 12 GB for a million hours, of which the pages that a process reads are shared with all others of its node.
An index is a copy of what shards and labels hold: when one of these files has changed, it is made again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from askd_ray.audio.units import samples_of
from askd_ray.data.labels import LabelKey, check_labels
from askd_ray.data.shards import BLOCK_ROWS, Block, read_table, train_paths
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, cache_root, digest, to_json
from askd_ray.location import Location, map_concurrently
from askd_ray.randomness import utterance_key

INDEX, DESCRIPTION = "index.arrow", "index.json"
"""The files of an index. The description is written last: without it, there is no index."""

ROW = [
    ("key", "<u8"),
    ("samples", "<i4"),
    ("teacher_loss", "<f4"),
    ("tokens", "<u2"),
    ("domain", "<u2"),
    ("row", "u1"),
    ("unused", "V3"),  # keys begin at multiples of 8 bytes
]
"""The record of a row, for numpy. ``key``: :func:`~askd_ray.randomness.utterance_key` of the id; ``samples`` at 16 kHz;
``teacher_loss``: mean cross-entropy of the target tokens, in nats, NaN if the teacher has not labelled it; ``tokens``:
target tokens; ``domain``: the number of its name in the description; ``row``: its place in its block.

A record, not a column for each field: the rows of a block then lie on one page of the file, or two."""

_SCHEMA = pa.schema(
    [
        ("shard", pa.uint32()),  # the number of its name in the description
        ("block", pa.uint32()),  # its number in the shard
        ("rows", pa.list_(pa.field("row", pa.binary(24), nullable=False))),  # records
    ]
)
_FORMAT = 2
_SHARDS_AT_A_TIME = 1_024  # whose rows are in memory while an index is written; one record batch of the file

IndexBatch = tuple[Sequence[str], pa.RecordBatch, Sequence[str], Sequence[int]]
"""A record batch of an index, with the names of its shards, and all domains and target tokens so far."""


class IndexNames(NamedTuple):
    """The names that the rows of an index refer to by number, and the target tokens that they use, in order."""

    shards: tuple[str, ...]
    domains: tuple[str, ...]
    token_ids: tuple[int, ...] = ()


class Rows(NamedTuple):
    """Labelled utterances, as arrays of the same length; see :data:`ROW`.

    ``number`` counts all utterances of an index from 0, and ``block`` all blocks.
    """

    number: NDArray[np.int64]
    block: NDArray[np.int64]
    row: NDArray[np.uint8]
    key: NDArray[np.uint64]
    samples: NDArray[np.int32]
    tokens: NDArray[np.uint16]
    domain: NDArray[np.uint16]


class _Part(NamedTuple):
    """A record batch of the file, without a copy. ``starts``: the first row of each block, and the end."""

    shard: NDArray[np.uint32]
    block: NDArray[np.uint32]
    starts: NDArray[np.int32]
    rows: NDArray[Any]


@dataclass(frozen=True)
class RowIndex:
    """The labelled train utterances of a run, block by block; see the module's description.

    ``shards`` and ``domains`` are the names that rows refer to by number, and ``token_ids`` the target tokens that rows
    use. Pickling sends only the place of the file.
    """

    folder: Location
    stamp: str
    shards: tuple[str, ...]
    domains: tuple[str, ...]
    token_ids: tuple[int, ...]
    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, folder: Location, stamp: str, names: IndexNames, batches: Sequence[pa.RecordBatch]) -> "RowIndex":
        """Return the index of record batches, whose memory it keeps."""
        return cls(folder, stamp, *names, tuple(map(_part, batches)))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_row_index, (self.folder, self.stamp)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The number of the first row of each block, and the number of rows: ``(n_blocks + 1,)``."""
        counts = [np.diff(part.starts) for part in self.parts]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])

    @cached_property
    def _part_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(part.shard) for part in self.parts)])

    @property
    def n_rows(self) -> int:
        """The number of utterances."""
        return int(self.starts[-1])

    @property
    def n_blocks(self) -> int:
        """The number of blocks."""
        return len(self.starts) - 1

    def rows(self, blocks: Sequence[int] | NDArray[np.int64]) -> Rows:
        """Return the utterances of some blocks, in the order of the blocks."""
        blocks = np.asarray(blocks, np.int64)
        counts = self.starts[blocks + 1] - self.starts[blocks]
        first = np.repeat(self.starts[blocks] - (np.cumsum(counts) - counts), counts)
        numbers = np.searchsorted(self._part_starts, blocks, side="right") - 1
        places = [
            self._slice(*place)
            for place in zip(numbers.tolist(), (blocks - self._part_starts[numbers]).tolist(), strict=True)
        ]
        records = np.concatenate([np.empty(0, ROW), *(self.parts[part].rows[rows] for part, rows in places)])
        names = ("row", "key", "samples", "tokens", "domain")
        columns: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(records[name]) for name in names}
        return Rows(np.arange(counts.sum()) + first, np.repeat(blocks, counts), **columns)

    def block(self, number: int) -> Block:
        """Return where a block's rows are stored."""
        place = int(np.searchsorted(self._part_starts, number, side="right")) - 1
        part, at = self.parts[place], number - int(self._part_starts[place])
        return Block(self.shards[part.shard[at]], int(part.block[at]))

    def teacher_losses(self) -> Iterator[NDArray[np.float32]]:
        """Yield the teacher's losses on the utterances that it labelled, in nats a token, some at a time."""
        for part in self.parts:
            losses = part.rows["teacher_loss"]
            yield losses[~np.isnan(losses)]

    def _slice(self, part: int, at: int) -> tuple[int, slice]:
        starts = self.parts[part].starts
        return part, slice(starts[at], starts[at + 1])


def row_index(shards: Location, labels: Location, key: LabelKey) -> RowIndex:
    """Return the index of a run's labelled train utterances; make and write it first where it is missing or stale.

    Raises :class:`AskdError` when there are no shards, or when labels are missing, stale or damaged.
    """
    stamp = _stamp(shards, labels, key)
    description = labels / DESCRIPTION
    is_complete = description.is_file() and (labels / INDEX).is_file()
    if not is_complete or json.loads(description.read_bytes())["stamp"] != stamp:
        write_row_index(labels, _parts(shards, labels, key), stamp)
    return open_row_index(labels, stamp)


@lru_cache(maxsize=4)
def open_row_index(folder: Location, stamp: str) -> RowIndex:
    """Map the index of a folder with labels; from a store, it is copied to this machine's cache first.

    Raises :class:`AskdError` when the folder has another index now.
    """
    description = json.loads((folder / DESCRIPTION).read_bytes())
    if description["stamp"] != stamp:
        raise AskdError(f"{folder}: shards or labels have changed while they were read: run the same command again")
    table = pa.ipc.open_file(pa.memory_map(_local_file(folder, stamp)))
    names = IndexNames(*(tuple(description[name]) for name in ("shards", "domains", "token_ids")))
    return RowIndex.of(folder, stamp, names, [table.get_batch(i) for i in range(table.num_record_batches)])


def write_row_index(folder: Location, batches: Iterator[IndexBatch], stamp: str) -> None:
    """Write an index."""
    shards, domains, token_ids = list[str](), list[str](), list[int]()
    (folder / DESCRIPTION).delete()
    with (folder / INDEX).atomic_output() as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for names, batch, domains, token_ids in batches:  # noqa: B007  # the last ones are all
            shards += names
            writer.write_batch(batch)
    description = {"stamp": stamp, "shards": shards, "domains": list(domains), "token_ids": list(token_ids)}
    (folder / DESCRIPTION).write_bytes(to_json(description).encode())


def _stamp(shards: Location, labels: Location, key: LabelKey) -> str:
    """Return a hash of the key and of names, sizes and times of all files that an index is made of."""
    paths = train_paths(shards)
    stamps = shards.stamped() | labels.stamped()
    files = [(path.name, stamps[path], stamps.get(labels / path.name)) for path in paths]
    return digest([_FORMAT, BLOCK_ROWS, key, files])


def _parts(shards: Location, labels: Location, key: LabelKey) -> Iterator[IndexBatch]:
    domains: dict[str, int] = {}
    token_ids = np.zeros(0, np.int32)
    all_paths = train_paths(shards)
    for start in range(0, len(all_paths), _SHARDS_AT_A_TIME):
        paths = all_paths[start : start + _SHARDS_AT_A_TIME]
        shard_rows = map_concurrently(lambda path: _shard_rows(path, labels / path.name, key), paths)
        blocks = [block for n, (table, _) in enumerate(shard_rows, start) for block in _blocks(n, table, domains)]
        token_ids = np.unique(np.concatenate([token_ids, *(used for _, used in shard_rows)]))
        yield [path.name for path in paths], _record_batch(blocks), list(domains), token_ids.tolist()


def _shard_rows(path: Location, labels: Location, key: LabelKey) -> tuple[pa.Table, NDArray[np.int32]]:
    """Return a shard's utterances, with the number of target tokens and the teacher's loss, and the tokens used."""
    check_labels(labels, path, key)
    label_table = read_table(labels, ["target_ids", "teacher_loss"])
    target_ids = label_table.column("target_ids")
    n_tokens = pc.call_function("list_value_length", [target_ids])
    used = np.unique(pc.call_function("list_flatten", [target_ids]).to_numpy())
    table = read_table(path, ["id", "duration_s", "domain"])
    table = table.append_column("tokens", n_tokens)
    return table.append_column("teacher_loss", label_table.column("teacher_loss")), used


def _blocks(shard: int, table: pa.Table, domains: dict[str, int]) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Yield the blocks of a shard that have labelled rows: the shard's number, the block's, and its records."""
    rows = np.zeros(table.num_rows, ROW)
    rows["key"] = [utterance_key(name) for name in table.column("id").to_pylist()]
    rows["samples"] = [samples_of(s) for s in table.column("duration_s").to_pylist()]
    rows["teacher_loss"] = table.column("teacher_loss").to_numpy()  # null becomes NaN
    rows["tokens"] = table.column("tokens").to_numpy()
    rows["domain"] = [domains.setdefault(name, len(domains)) for name in table.column("domain").to_pylist()]
    rows["row"] = np.arange(table.num_rows) % BLOCK_ROWS
    for number, start in enumerate(range(0, table.num_rows, BLOCK_ROWS)):
        block = rows[start : start + BLOCK_ROWS]
        labelled = block[block["tokens"] > 0]
        if len(labelled):
            yield shard, number, labelled


def _record_batch(blocks: Sequence[tuple[int, int, NDArray[Any]]]) -> pa.RecordBatch:
    offsets = np.cumsum([0, *(len(rows) for _, _, rows in blocks)]).astype(np.int32)
    rows = np.concatenate([np.empty(0, ROW), *(rows for _, _, rows in blocks)])
    return record_batch([shard for shard, _, _ in blocks], [number for _, number, _ in blocks], offsets, rows)


def record_batch(
    shards: Sequence[int] | NDArray[Any],
    numbers: Sequence[int] | NDArray[Any],
    offsets: NDArray[np.int32],
    rows: NDArray[Any],
) -> pa.RecordBatch:
    """Return blocks as a part of an index: their shards, their numbers there, and their records by ``offsets``."""
    records = pa.FixedSizeBinaryArray.from_buffers(pa.binary(24), len(rows), [None, pa.py_buffer(rows.tobytes())])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), records, type=_SCHEMA.field("rows").type)
    return pa.RecordBatch.from_arrays(
        [pa.array(shards, pa.uint32()), pa.array(numbers, pa.uint32()), lists], schema=_SCHEMA
    )


def _part(batch: pa.RecordBatch) -> _Part:
    shard, block, lists = batch.columns
    records = lists.values
    rows = np.frombuffer(records.buffers()[1], ROW, len(records), 24 * records.offset)
    return _Part(shard.to_numpy(), block.to_numpy(), lists.offsets.to_numpy(), rows)


def _local_file(folder: Location, stamp: str) -> str:
    if not folder.root:
        return (folder / INDEX).path
    path = cache_root() / "index" / f"{stamp}.arrow"
    if not path.is_file():
        with atomic_path(path) as temporary, (folder / INDEX).stream() as source, temporary.open("wb") as file:
            while chunk := source.read(8 << 20):
                file.write(chunk)
    return str(path)
