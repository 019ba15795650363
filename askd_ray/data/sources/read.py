"""Read the rows of sources, and survey sources without reading their audio."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from askd_ray.config.source import Source, SourceKind
from askd_ray.data.sources.files import SourceFile, source_files, stamped
from askd_ray.data.sources.kaldi import read_kaldi
from askd_ray.data.sources.lhotse import read_lhotse
from askd_ray.data.sources.librispeech import read_librispeech
from askd_ray.data.sources.ljspeech import read_ljspeech
from askd_ray.data.sources.manifest import read_manifest
from askd_ray.data.sources.parquet import count_rows, names_audio_files, read_parquet
from askd_ray.data.sources.record import RecordValues, SourceRecord, names_by_field, to_row
from askd_ray.data.sources.row import SourceRow
from askd_ray.data.sources.splits import is_selected
from askd_ray.data.sources.webdataset import read_webdataset
from askd_ray.errors import AskdError
from askd_ray.files import digest, hash_fraction
from askd_ray.location import Location, map_concurrently

Reader = Callable[[Source, SourceFile, bool], Iterator[SourceRecord]]
"""Yields the records of a file; the last argument, ``needs_text``, says whether a text column is required."""

_READERS: dict[SourceKind, Reader] = {
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "lhotse": read_lhotse,
    "ljspeech": read_ljspeech,
    "librispeech": read_librispeech,
    "kaldi": read_kaldi,
}
MISSING = (-1, -1)
"""The size and time of a file that is not there."""

_MAX_NAMED = 10
_HOLDS_AUDIO = ("parquet", "webdataset")  # the kinds whose rows cannot be read without reading audio


@dataclass(frozen=True)
class Survey:
    """What sources hold: a fingerprint, the number of rows, and the bytes of their files, with audio files.

    ``n_rows`` is None if it needs reading the audio. ``of_sources`` are the fingerprints of the single sources.
    """

    fingerprint: str
    n_rows: int | None
    n_bytes: int
    of_sources: tuple[str, ...]


@dataclass
class SplitNames:
    """The names of splits that rows of a source had: whether the selected one was among them, and some others."""

    selected: bool
    others: list[str] = field(default_factory=list[str])

    def add(self, other: "SplitNames") -> None:
        """Add the names of further rows of the source."""
        self.selected |= other.selected
        self.others = list(dict.fromkeys([*self.others, *other.others]))[:_MAX_NAMED]

    def check(self, source: Source, label: str) -> None:
        """Raise :class:`AskdError` when no row has the split that the source selects."""
        if source.split is not None and not self.selected and self.others:
            names = ", ".join(repr(name) for name in self.others if name) or "no row says its split"
            raise AskdError(f"source {label}: no row of the split {source.split!r}: there is {names}")


def survey(sources: Sequence[Source], needs_text: bool = True) -> Survey:
    """Return a hash of the names, sizes and times of all files of the sources, with audio files, and the row count.

    Raises :class:`AskdError` for a source that is missing or malformed.
    """
    stamps = FileStamps()
    surveys = [_survey(source, stamps, needs_text) for source in sources]
    counts = [surveyed.n_rows for surveyed in surveys]
    return Survey(
        fingerprint=digest([surveyed.fingerprint for surveyed in surveys]),
        n_rows=None if None in counts else sum(n for n in counts if n is not None),
        n_bytes=sum(surveyed.n_bytes for surveyed in surveys),
        of_sources=tuple(surveyed.fingerprint for surveyed in surveys),
    )


def _survey(source: Source, stamps: "FileStamps", needs_text: bool) -> Survey:
    """Survey one source; its rows are read one at a time, since a manifest may have many millions."""
    files, is_whole = source_files(source), source.split is None and source.share == 1.0
    seen = _StampHash(stamps)
    for file in files:
        seen.add(file.location)
    n_rows: int | None = None
    if has_audio_files(source, files):
        n_read = 0
        for row in rows_of_files(source, files, needs_text):
            n_read += 1
            if isinstance(row.audio, Location):
                seen.add(row.audio)
        n_rows = n_read if is_whole else None
    elif source.kind == "parquet" and is_whole:
        n_rows = sum(map_concurrently(count_rows, [file.location for file in files]))
    return Survey(seen.hexdigest(), n_rows, seen.n_bytes, ())


def read_rows(source: Source, needs_text: bool = True) -> Iterator[SourceRow]:
    """Yield the rows of a source in order. Audio in tars and Parquet is included; audio files are not read yet.

    A row that cannot be used has a ``problem``.

    Raises :class:`AskdError` if the whole source is unusable: missing, damaged, an unknown or missing column (the text
    column only if ``needs_text``), or no row of the selected split.
    """
    yield from rows_of_files(source, source_files(source), needs_text)


def rows_of_files(source: Source, files: Sequence[SourceFile], needs_text: bool) -> Iterator[SourceRow]:
    """Yield the rows of all files of a source, as :func:`read_rows` does."""
    names = SplitNames(source.split is None)
    for file in files:
        yield from rows_of_file(source, file, names, needs_text)
    if files:
        names.check(source, files[0].label)


def rows_of_file(source: Source, file: SourceFile, names: SplitNames, needs_text: bool) -> Iterator[SourceRow]:
    """Yield the rows of one file that the source selects, and note the splits of its rows in ``names``."""
    reader = _READERS.get(source.kind, read_manifest)
    columns = names_by_field(source)
    for record in reader(source, file, needs_text):
        values = RecordValues(columns, file, record)
        if source.split is not None and not is_selected(source, values.split_name()):
            names.add(SplitNames(False, [values.split_name()]))
            continue
        names.selected = True
        row = to_row(source, values)
        if hash_fraction(row.id) < source.share:
            yield row


def has_audio_files(source: Source, files: Sequence[SourceFile]) -> bool:
    """Whether the rows of a source name audio files, so that they can be listed without reading audio."""
    if source.kind == "parquet":
        return all(map_concurrently(lambda file: names_audio_files(source, file), files))
    return source.kind not in _HOLDS_AUDIO


class FileStamps:
    """Sizes and times of files, from one listing per folder: one request per file would take hours on a store."""

    def __init__(self) -> None:
        self._listed: dict[Location, dict[Location, tuple[int, int]]] = {}

    def of(self, file: Location) -> tuple[int, int]:
        """Return size and time of a file; :data:`MISSING` if it is not there, which becomes a problem of its row."""
        if file.parent not in self._listed:
            self._listed[file.parent] = stamped(file.parent)
        return self._listed[file.parent].get(file, MISSING)


class _StampHash:
    """A hash of names, sizes and times of files in their order; the next rows of the same recording add nothing."""

    def __init__(self, stamps: FileStamps):
        self.n_bytes = 0
        self._stamps, self._sha, self._last = stamps, hashlib.sha256(), Location("", "")

    def add(self, file: Location) -> None:
        """Add a file."""
        if file != self._last:
            size, changed_ns = self._stamps.of(file)
            self._sha.update(json.dumps([file.name, size, changed_ns]).encode())
            self.n_bytes += max(0, size)
            self._last = file

    def hexdigest(self) -> str:
        """Return the hash of all files so far."""
        return self._sha.hexdigest()[:16]
