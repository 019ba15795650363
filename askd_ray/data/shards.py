"""Read and write shards: Parquet files of utterances, one set for each split."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import samples_of
from askd_ray.audio.waveform import fade_ends
from askd_ray.data.schema import DERIVED_SCHEMA, SHARD_SCHEMA, Piece, Split, Utterance
from askd_ray.errors import AskdError
from askd_ray.files import digest
from askd_ray.location import UNFINISHED, Location, PathOrUri

DERIVED = "derived-"
"""The name of a derived shard is this and the name of the shard of which it was made."""

ROW_GROUP = 256
"""The utterances in a row group of a shard: what a reader of a part of a shard reads at least."""

_sealed: set[Split] = set()


@contextmanager
def sealed(split: Split) -> Generator[None]:
    """Forbid this process to read a split while the block runs, so that no choice can depend on that split."""
    _sealed.add(split)
    try:
        yield
    finally:
        _sealed.discard(split)


def _refuse_sealed(name: str) -> None:
    for split in _sealed:
        if fnmatchcase(name.removeprefix(DERIVED), f"{split}-*.parquet"):
            raise PermissionError(f"{name}: the {split} split is not read here: no choice may depend on it")


def shard_paths(folder: Location, split: Split) -> list[Location]:
    """Return the shards of a split, sorted; :func:`derived_paths` returns those of the derived clips.

    Raises :class:`AskdError` when there are none, or not all of them yet.
    """
    files = folder.files()
    if folder / UNFINISHED in files:
        raise AskdError(f"the shards in {folder} are unfinished: `askd prepare` was interrupted there, run it again")
    paths = [file for file in files if fnmatchcase(file.name, f"{split}-*.parquet")]
    if not paths:
        raise AskdError(f"no {split} shards in {folder}: run `askd prepare` first, or give the {split} split a share")
    return paths


def derived_paths(folder: Location, split: Split) -> list[Location]:
    """Return the derived shards of a split, sorted; [] if no clips were derived."""
    return folder.files(f"{DERIVED}{split}-*.parquet")


def train_paths(folder: Location) -> list[Location]:
    """Return all shards that a student is trained on, those of derived clips last.

    Raises :class:`AskdError` as :func:`shard_paths` does.
    """
    return [*shard_paths(folder, "train"), *derived_paths(folder, "train")]


def read_table(path: PathOrUri, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or only some columns of it.

    Raises :class:`AskdError` when it is missing or damaged.
    """
    location = Location.of(path)
    _refuse_sealed(location.name)
    with location.explain("is damaged or no Parquet file of this kind"), location.open() as file:
        return pq.read_table(file, columns=list(columns) if columns is not None else None)


def rows_hash(path: Location) -> str:
    """Return a hash of the rows of a shard, or of a derived shard, in their order; ``content_hash`` stands for audio.

    Raises :class:`AskdError` when the file is missing or damaged.
    """
    schema = DERIVED_SCHEMA if path.name.startswith(DERIVED) else SHARD_SCHEMA
    return digest(read_table(path, [name for name in schema.names if name != "audio"]).to_pylist())


def write_table(path: PathOrUri, table: pa.Table, row_group_size: int = ROW_GROUP) -> None:
    """Write a Parquet file atomically, with up to ``row_group_size`` rows in a row group."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=row_group_size, compression="zstd")
    Location.of(path).write_bytes(buffer.getvalue())


def to_table(utterances: Sequence[Utterance]) -> pa.Table:
    """Return utterances as a table of :data:`~askd_ray.data.schema.SHARD_SCHEMA`."""
    rows = [
        {
            "id": u.id,
            "audio": {"bytes": u.audio, "path": u.path},
            "text": u.text,
            "duration_s": u.duration_s,
            "speaker": u.speaker,
            "language": u.language,
            "domain": u.domain,
            "split": u.split,
            "licence": u.licence,
            "content_hash": u.content_hash,
        }
        for u in utterances
    ]
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)


def to_utterances(table: pa.Table) -> list[Utterance]:
    """Return the rows of a shard as utterances."""
    return [_utterance(row, row["audio"]["bytes"], row["audio"]["path"]) for row in table.to_pylist()]


def _utterance(row: dict[str, Any], audio: bytes, path: str) -> Utterance:
    return Utterance(
        id=row["id"],
        audio=audio,
        path=path,
        text=row["text"],
        duration_s=row["duration_s"],
        speaker=row["speaker"],
        language=row["language"],
        domain=row["domain"],
        split=row["split"],
        licence=row["licence"],
    )


def read_shard(path: PathOrUri) -> list[Utterance]:
    """Read the utterances of a shard, or of a derived shard with the stored audio that it refers to.

    Raises :class:`AskdError` when a file is missing or damaged.
    """
    path = Location.of(path)
    table = read_table(path)
    if not path.name.startswith(DERIVED):
        return to_utterances(table)
    rows = table.to_pylist()
    stored = {
        name: [audio["bytes"] for audio in read_table(path.parent / name, ["audio"]).column("audio").to_pylist()]
        for name in sorted({piece["shard"] for row in rows for piece in row["pieces"]})
    }
    return [_derived_utterance(row, stored) for row in rows]


def _derived_utterance(row: dict[str, Any], stored: Mapping[str, Sequence[bytes]]) -> Utterance:
    pieces = tuple(
        Piece(stored[p["shard"]][p["row"]], p["start_s"], p["end_s"], p["pause_s"], p["gain_db"]) for p in row["pieces"]
    )
    return replace(_utterance(row, b"", ""), derived=row["kind"], pieces=pieces)


def read_utterances(folder: Location, split: Split) -> list[Utterance]:
    """Read all utterances of a split into memory, without derived clips; meant for dev and test."""
    return [u for path in shard_paths(folder, split) for u in to_utterances(read_table(path))]


def waveform_of(utterance: Utterance) -> Waveform:
    """Decode the audio of a shard's row, or join the pieces of a derived utterance.

    Raises :class:`AskdError` when it cannot be decoded: `askd prepare` checked the audio, so the shard is damaged.
    """
    try:
        return _joined(utterance.pieces) if utterance.pieces else decode(utterance.audio)
    except AudioError as error:
        raise AskdError(f"utterance {utterance.id} ({utterance.path}) can no longer be decoded: {error}") from None


def _joined(pieces: Sequence[Piece]) -> Waveform:
    """Return the pieces one after another, each after its pause and with faded ends; a peak above 1 is scaled down."""
    parts: list[Waveform] = []
    for piece in pieces:
        part = decode(piece.audio)[samples_of(piece.start_s) : samples_of(piece.end_s)]
        gain = np.float32(10.0 ** (piece.gain_db / 20.0))
        parts += [np.zeros(samples_of(piece.pause_s), np.float32), fade_ends(part) * gain]
    joined = np.concatenate(parts)
    return joined / max(1.0, float(np.abs(joined).max(initial=0.0)))
