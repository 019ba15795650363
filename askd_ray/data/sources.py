"""Where utterances come from: manifests, Hugging Face style Parquet, WebDataset tars, read as a stream of rows."""

import errno
import io
import math
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from askd_ray.audio.cut import cut
from askd_ray.audio.decode import AudioError
from askd_ray.config.source import Source
from askd_ray.data.manifest import json_object, manifest_file, read_manifest
from askd_ray.errors import AskdError
from askd_ray.fetch.speech import speech_folder
from askd_ray.files import digest, place_of
from askd_ray.location import Location, at_once

_SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz")}
_AUDIO_EXTENSIONS = {"wav", "flac", "ogg", "opus", "mp3", "m4a", "mp4", "aac", "webm", "wma", "aiff", "aif", "amr"}
_BUFFER_BYTES = 1 << 20  # of a recording that stretches are cut from: half a minute of it
_MAX_BYTES = 1 << 29  # no clip of 30 s needs more, and several are in memory at a time


@dataclass(frozen=True)
class SourceRow:
    """A row as its source gives it; nothing is known about its audio yet. ``where`` names file and line."""

    id: str
    audio: bytes | Location
    path: str
    text: str
    speaker: str
    language: str
    domain: str
    licence: str
    split: str
    where: str
    start_s: float | None = None
    end_s: float | None = None

    def read_audio(self, max_s: float) -> bytes:
        """Return the audio file's bytes, or the stretch of it as FLAC where the row names one.

        Raises :class:`~askd_ray.audio.decode.AudioError` when it cannot be read, and :class:`AskdError` when it is its
        store that cannot.
        """
        if isinstance(self.audio, bytes):
            return self.audio
        try:
            if self.start_s is not None or self.end_s is not None:
                return self._cut(self.audio, max_s)
            return self.audio.read_bytes(_MAX_BYTES)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise AudioError(f"longer than {max_s:g} s: {error.filename} is over {_MAX_BYTES >> 20} MiB") from None
            detail = os.strerror(error.errno) if error.errno else error
            raise AudioError(f"unreadable audio: {self.audio}: {detail}") from None

    def _cut(self, recording: Location, max_s: float) -> bytes:
        try:
            with recording.open() as file:
                seekable = io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
                return cut(cast(BinaryIO, seekable), self.start_s or 0.0, self.end_s, max_s)
        except AudioError:
            recording.is_file()  # decoders take a store that breaks off for damaged audio
            raise


@dataclass(frozen=True)
class Survey:
    """What can be said about sources without reading their audio. ``n_rows`` is None where only reading tells."""

    fingerprint: str
    n_rows: int | None


def survey(sources: Sequence[Source], needs_text: bool = True) -> Survey:
    """Return a hash over names, sizes and times of the sources' files (and of those that manifests name), and a count.

    Raises :class:`AskdError` for a source that is missing or that is no such source.
    """
    stamps = _Stamps()
    files: dict[Location, tuple[int, int]] = {}
    counts: list[int | None] = []
    for source in sources:
        found = _files(source)
        files |= {file: stamps.of(file) for file in found}
        is_whole = source.split is None and source.share == 1.0
        if source.kind == "manifest":
            for file in found:
                rows = [file.parent / str(record["audio"]) for _, record in read_manifest(file, needs_text)]
                files |= {audio: stamps.of(audio) for audio in rows}
                counts.append(len(rows) if is_whole else None)
        elif source.kind == "parquet" and is_whole:
            counts += at_once(_n_rows, found)
        else:
            counts.append(None)
    n_rows = None if None in counts else sum(n for n in counts if n is not None)
    return Survey(digest([[file.name, *stamp] for file, stamp in files.items()]), n_rows)


def read_rows(source: Source, needs_text: bool = True) -> Iterator[SourceRow]:
    """Yield the rows of a source, in its order. Audio in files is not read; audio in tars and Parquet comes along.

    Raises :class:`AskdError` for what makes the source unusable: missing, damaged, an unknown or missing column (a
    column of texts only where ``needs_text``).
    """
    for file, label in _files(source).items():
        if source.kind == "manifest":
            rows = _manifest_rows(source, file, label, needs_text)
        elif source.kind == "parquet":
            rows = _parquet_rows(source, file, label, needs_text)
        else:
            rows = _webdataset_rows(source, file, label)
        yield from (row for row in rows if _is_taken(source, row))


def _is_taken(source: Source, row: SourceRow) -> bool:
    return (source.split is None or row.split == source.split) and place_of(row.id) < source.share


class _Stamps:
    """Sizes and times of files, from one listing a folder: asking a store for each file would take hours."""

    def __init__(self) -> None:
        self._listed: dict[Location, dict[Location, tuple[int, int]]] = {}

    def of(self, file: Location) -> tuple[int, int]:
        """Return size and time of a file; a missing one is a matter of its row."""
        if file.parent not in self._listed:
            self._listed[file.parent] = file.parent.stamped()
        return self._listed[file.parent].get(file, (-1, -1))


def _root(source: Source) -> Location:
    if source.path.startswith("cache:"):
        return Location.of(speech_folder(source.path.removeprefix("cache:")))
    root = Location.of(source.path)
    if not root.exists():
        raise AskdError(f"source {root} does not exist")
    return root


def _files(source: Source) -> dict[Location, str]:
    """Return the source's files in their order, each with the name that the recipe gives it: what ids start with."""
    root = _root(source)
    name = str(root) if root.root else source.path.removeprefix("cache:")
    if source.kind == "manifest":
        files = [manifest_file(root)]
    else:
        suffixes = _SUFFIXES[source.kind]
        files = [root] if root.is_file() else [f for f in root.files(recursive=True) if f.name.endswith(suffixes)]
        if not files:
            raise AskdError(f"source {root}: no {' or '.join(suffixes)} file in it, as kind: {source.kind} needs")
    return {file: _below(name, file.path.removeprefix(root.path).lstrip("/")) for file in files}


def _below(name: str, path: str) -> str:
    """Return the name of what lies below something, which may be named by a URI."""
    scheme, slashes, plain = name.rpartition("://")
    return scheme + slashes + str(PurePath(plain) / path)


def _manifest_rows(source: Source, file: Location, label: str, needs_text: bool) -> Iterator[SourceRow]:
    for where, record in read_manifest(file, needs_text):
        start_s, end_s = (_seconds(record.get(name), name, where) for name in ("start_s", "end_s"))
        audio = str(record["audio"])
        stretch = "" if start_s is None and end_s is None else f"@{start_s or 0.0}-{end_s or ''}"
        default_id = f"{_below(label.removesuffix(file.name), audio)}{stretch}"
        yield _row(source, record, default_id, file.parent / audio, audio, where, start_s, end_s)


def _seconds(value: Any, name: str, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise AskdError(f"{where}: {name} = {value!r}: a number of seconds is needed")
    return seconds


def _row(
    source: Source,
    values: Mapping[str, Any],
    default_id: str,
    audio: bytes | Location,
    path: str,
    where: str,
    start_s: float | None = None,
    end_s: float | None = None,
) -> SourceRow:
    """Return a row from what its source says of it; what is not said, the recipe's source fills in."""

    def text_of(*names: str, default: str = "") -> str:
        found = (values.get(name) for name in names)
        return next((str(value) for value in found if value is not None and value != ""), default)

    return SourceRow(
        id=text_of("id", default=default_id),
        audio=audio,
        path=path,
        text=_cased(" ".join(text_of("text", "sentence").split()), source),
        speaker=text_of("speaker", "speaker_id"),
        language=text_of("language", default=source.language),
        domain=text_of("domain", default=source.domain),
        licence=text_of("licence", "license", default=source.licence),
        split=text_of("split"),
        where=where,
        start_s=start_s,
        end_s=end_s,
    )


def _open_parquet(file: Location) -> pq.ParquetFile:
    with file.explain("is damaged or no Parquet file"):
        return pq.ParquetFile(file.open())


def _n_rows(file: Location) -> int:
    with _open_parquet(file) as parquet:
        return parquet.metadata.num_rows


_PARQUET_OPTIONAL = ("id", "speaker", "speaker_id", "domain", "language", "licence", "license", "split")


def _cased(text: str, source: Source) -> str:
    return text.capitalize() if source.case == "sentence" and text.isupper() else text


def _parquet_rows(source: Source, file: Location, label: str, needs_text: bool) -> Iterator[SourceRow]:
    parquet = _open_parquet(file)
    schema = parquet.schema_arrow
    texts = [name for name in ("text", "sentence") if name in schema.names][:1]
    if "audio" not in schema.names or (needs_text and not texts):
        raise AskdError(f"{file}: columns 'audio' and 'text' (or 'sentence') are needed, it has {schema.names}")
    audio_type = schema.field("audio").type
    if not pa.types.is_struct(audio_type) or not {"bytes", "path"} <= {field.name for field in audio_type}:
        raise AskdError(f"{file}: the column 'audio' is {audio_type}, and struct<bytes, path> is needed")
    columns = ["audio", *texts, *(name for name in _PARQUET_OPTIONAL if name in schema.names)]
    number = 0
    batches = parquet.iter_batches(batch_size=16, columns=columns)
    while True:
        with file.explain(f"is damaged after row {number}"):
            batch = next(batches, None)
        if batch is None:
            break
        for values in batch.to_pylist():
            audio = values["audio"] or {"bytes": None, "path": None}
            path = audio["path"] or ""
            where = f"{file}:{number}"
            in_file = file.parent / path if path else b""
            yield _row(source, values, f"{label}:{number}", audio["bytes"] or in_file, path, where)
            number += 1


def _webdataset_rows(source: Source, file: Location, label: str) -> Iterator[SourceRow]:
    """Group the members of a tar by their names up to the first dot, as they come; nothing is unpacked."""
    key: str | None = None
    members: dict[str, tuple[str, bytes]] = {}
    with file.explain("is damaged or no tar file", tarfile.TarError, EOFError, zlib.error):
        with tarfile.open(fileobj=cast(BinaryIO, file.stream()), mode="r|*") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                handle = tar.extractfile(member) if member.isreg() and stem else None
                if handle is None:
                    continue
                if key not in (None, folder + slash + stem):
                    yield _sample(source, f"{file}:{key}", f"{label}/{key}", members)
                    members = {}
                key = folder + slash + stem
                members[extension.lower()] = (member.name, handle.read())
        if key is not None:
            yield _sample(source, f"{file}:{key}", f"{label}/{key}", members)


def _sample(source: Source, where: str, default_id: str, members: Mapping[str, tuple[str, bytes]]) -> SourceRow:
    values = json_object(members["json"][1], f"{where}.json") if "json" in members else {}
    if "txt" in members:
        values["text"] = members["txt"][1].decode("utf-8", errors="replace")
    path, audio = next((m for name, m in members.items() if name in _AUDIO_EXTENSIONS), ("", b""))
    return _row(source, values, default_id, audio, path, where)
