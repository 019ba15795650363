"""Read and write shards: Parquet files of utterances, one set for each split."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.parquet as pq

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.data.schema import SHARD_SCHEMA, Split, Utterance
from askd_ray.errors import AskdError
from askd_ray.location import UNFINISHED, Location, PathOrUri

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
        if fnmatchcase(name, f"{split}-*.parquet"):
            raise PermissionError(f"{name}: the {split} split is not read here: no choice may depend on it")


def shard_paths(folder: Location, split: Split) -> list[Location]:
    """Return the shards of a split, sorted.

    Raises :class:`AskdError` when there are none, or not all of them yet.
    """
    files = folder.files()
    if folder / UNFINISHED in files:
        raise AskdError(f"the shards in {folder} are unfinished: `askd prepare` was interrupted there, run it again")
    paths = [file for file in files if fnmatchcase(file.name, f"{split}-*.parquet")]
    if not paths:
        raise AskdError(f"no {split} shards in {folder}: run `askd prepare` first, or give the {split} split a share")
    return paths


def read_table(path: PathOrUri, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or only some columns of it.

    Raises :class:`AskdError` when it is missing or damaged.
    """
    location = Location.of(path)
    _refuse_sealed(location.name)
    with location.explain("is damaged or no Parquet file of this kind"), location.open() as file:
        return pq.read_table(file, columns=list(columns) if columns is not None else None)


def write_table(path: PathOrUri, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
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
    return [
        Utterance(
            id=row["id"],
            audio=row["audio"]["bytes"],
            path=row["audio"]["path"],
            text=row["text"],
            duration_s=row["duration_s"],
            speaker=row["speaker"],
            language=row["language"],
            domain=row["domain"],
            split=row["split"],
            licence=row["licence"],
        )
        for row in table.to_pylist()
    ]


def read_utterances(folder: Location, split: Split) -> list[Utterance]:
    """Read all utterances of a split into memory; meant for dev and test."""
    return [u for path in shard_paths(folder, split) for u in to_utterances(read_table(path))]


def waveform_of(utterance: Utterance) -> Waveform:
    """Decode the audio of a shard's row.

    Raises :class:`AskdError` when it cannot be decoded: `askd prepare` checked the audio, so the shard is damaged.
    """
    try:
        return decode(utterance.audio)
    except AudioError as error:
        raise AskdError(f"utterance {utterance.id} ({utterance.path}) can no longer be decoded: {error}") from None
