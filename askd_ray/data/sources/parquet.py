"""Reader of Parquet files: Hugging Face's layout, and audio as paths or as samples."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.record import SourceRecord, known_columns, names_of
from askd_ray.errors import AskdError
from askd_ray.location import Location

_BATCH_ROWS = 16  # rows with audio in memory at a time
_BUFFER_BYTES = 4 << 20  # without a buffer, a whole row group is read before its pages are decoded
_FORMS = "struct<bytes, path>, struct<array, sampling_rate>, binary (a file's bytes) or string (a path)"
_Value = Mapping[str, Any] | bytes | str | None


def read_parquet(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the rows of a Parquet file, or of some of its row groups.

    Raises :class:`AskdError`: damaged, no audio column, no text column although ``needs_text``, or unknown audio type.
    """
    with _open(file.location) as parquet:
        audio, columns = _columns(source, file, parquet.schema_arrow, needs_text)
        groups = list(file.row_groups) or None
        batches = parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns)
        number = sum(parquet.metadata.row_group(n).num_rows for n in range(groups[0] if groups else 0))
        while True:
            with file.location.explain(f"is damaged after row {number}"):
                batch = next(batches, None)
            if batch is None:
                break
            for values in _to_dicts(batch):
                yield _record(file, values, audio, number)
                number += 1


def count_rows(file: Location) -> int:
    """Return the number of rows in a Parquet file's metadata."""
    with _open(file) as parquet:
        return parquet.metadata.num_rows


def in_row_groups(file: SourceFile, max_rows: int) -> list[SourceFile]:
    """Return a Parquet file in pieces of consecutive row groups, each of ``max_rows`` rows or a single row group."""
    with _open(file.location) as parquet:
        counts = [parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)]
    pieces, n_rows = list[list[int]](), 0
    for group, count in enumerate(counts):
        if not pieces or n_rows + count > max_rows:
            pieces.append([])
            n_rows = 0
        pieces[-1].append(group)
        n_rows += count
    return [replace(file, row_groups=tuple(groups)) for groups in pieces]


def names_audio_files(source: Source, file: SourceFile) -> bool:
    """Whether a Parquet file holds only the paths of its audio, so that they can be listed without reading audio."""
    with _open(file.location) as parquet:
        name = names_of(source, "audio")[0]
        return name in parquet.schema_arrow.names and _is_text(parquet.schema_arrow.field(name).type)


def _open(file: Location) -> pq.ParquetFile:
    with file.explain("is damaged or no Parquet file"):
        return pq.ParquetFile(file.open(), pre_buffer=False, buffer_size=_BUFFER_BYTES)


def _columns(source: Source, file: SourceFile, schema: pa.Schema, needs_text: bool) -> tuple[str, list[str]]:
    names = cast(list[str], schema.names)
    audio, texts = names_of(source, "audio")[0], names_of(source, "text")
    text = next((name for name in texts if name in names), None)
    if audio not in names or (needs_text and text is None):
        raise AskdError(
            f"{file.location}: columns {audio!r} and {' or '.join(map(repr, texts))} are needed, it has {names}: "
            "columns: {audio: NAME, text: NAME} names others"
        )
    columns = [name for name in known_columns(source) if name in names]
    repeated = next((name for name in columns if names.count(name) > 1), None)
    if repeated is not None:
        raise AskdError(f"{file.location}: several columns {repeated!r}")
    kind = schema.field(audio).type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set[str]()
    if not (fields & {"bytes", "path"} or fields >= {"array", "sampling_rate"} or _is_text(kind) or _is_binary(kind)):
        raise AskdError(f"{file.location}: the column {audio!r} is {kind}, and {_FORMS} is needed")
    return audio, columns


def _record(file: SourceFile, values: dict[str, Any], column: str, number: int) -> SourceRecord:
    where, default_id = f"{file.location}:{number}", f"{file.label}:{number}"
    audio = cast(_Value, values.pop(column))
    if not isinstance(audio, Mapping):
        return SourceRecord(values, where, audio if audio else b"", id=default_id, problem="" if audio else _NO_AUDIO)
    path = audio.get("path") or ""
    path = path.decode("utf-8", errors="surrogateescape") if isinstance(path, bytes) else path
    data = audio.get("bytes")
    if data:
        if isinstance(data, list):
            data = _joined(cast(list[Any], data))
        problem = "" if data else "unreadable audio: its bytes are no list of numbers from 0 to 255"
        return SourceRecord(values, where, data or b"", path, default_id, problem)
    if audio.get("array") is not None:
        return _from_samples(values, where, default_id, path, audio)
    return SourceRecord(values, where, path or b"", path, default_id, "" if path else _NO_AUDIO)


_NO_AUDIO = "no audio: neither bytes nor a path in the row"


def _joined(data: list[Any]) -> bytes | None:
    try:
        return bytes(data)
    except (TypeError, ValueError):
        return None


def _from_samples(
    values: dict[str, Any], where: str, default_id: str, path: str, audio: Mapping[str, Any]
) -> SourceRecord:
    """Return a record whose audio, float samples in [-1, 1] or 16-bit integers, is a WAV file."""
    buffer = io.BytesIO()
    try:
        samples, rate_hz = np.asarray(audio["array"]), int(audio["sampling_rate"])
        if samples.ndim != 1 or samples.dtype.kind not in "fi" or samples.size == 0:
            raise ValueError(f"an array of shape {samples.shape} of {samples.dtype}")
        if samples.dtype.kind == "i":
            samples = samples.astype(np.float64) / 2**15
        soundfile.write(buffer, samples.astype(np.float32), rate_hz, format="WAV", subtype="FLOAT")
    except (TypeError, ValueError, OverflowError, soundfile.LibsndfileError) as error:
        return SourceRecord(
            values, where, b"", path, default_id, f"unreadable audio: no samples of a known rate: {error}"
        )
    return SourceRecord(values, where, buffer.getvalue(), path, default_id)


def _to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch; if a text is not UTF-8, all texts of the batch are bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        schema = pa.schema([pa.field(field.name, _as_binary(field.type)) for field in batch.schema])
        return batch.cast(schema).to_pylist()


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _as_binary(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_binary(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    return pa.large_binary() if _is_text(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
