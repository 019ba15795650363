"""The rows of sources, and what can be said of them without reading their audio."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
"""Yields the records of a file; the last argument says whether a column of texts is needed."""

_READERS: dict[SourceKind, Reader] = {
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "lhotse": read_lhotse,
    "ljspeech": read_ljspeech,
    "librispeech": read_librispeech,
    "kaldi": read_kaldi,
}
_MAX_NAMED = 10
_HOLDS_AUDIO = ("parquet", "webdataset")  # the kinds whose rows cannot be read without reading audio


@dataclass(frozen=True)
class Survey:
    """What can be said about sources without reading their audio. ``n_rows`` is None where only reading tells."""

    fingerprint: str
    n_rows: int | None


def survey(sources: Sequence[Source], needs_text: bool = True) -> Survey:
    """Return a hash over names, sizes and times of the sources' files (and of those that their rows name), and a count.

    Raises :class:`AskdError` for a source that is missing or that is no such source.
    """
    stamps = _Stamps()
    files: dict[Location, tuple[int, int]] = {}
    counts: list[int | None] = []
    for source in sources:
        found = source_files(source)
        files |= {file.location: stamps.of(file.location) for file in found}
        is_whole = source.split is None and source.share == 1.0
        if _audio_lies_beside(source, found):
            rows = [row.audio for row in _rows(source, found, needs_text)]
            files |= {audio: stamps.of(audio) for audio in rows if isinstance(audio, Location)}
            counts.append(len(rows) if is_whole else None)
        elif source.kind == "parquet" and is_whole:
            counts += map_concurrently(count_rows, [file.location for file in found])
        else:
            counts.append(None)
    n_rows = None if None in counts else sum(n for n in counts if n is not None)
    return Survey(digest([[file.name, *stamp] for file, stamp in files.items()]), n_rows)


def read_rows(source: Source, needs_text: bool = True) -> Iterator[SourceRow]:
    """Yield the rows of a source, in its order. Audio in files is not read; audio in tars and Parquet comes along.

    A row that cannot be used comes with its ``problem``.

    Raises :class:`AskdError` for what makes the source unusable: missing, damaged, an unknown or missing column (a
    column of texts only where ``needs_text``), a split that no row of it has.
    """
    yield from _rows(source, source_files(source), needs_text)


def _rows(source: Source, files: Sequence[SourceFile], needs_text: bool) -> Iterator[SourceRow]:
    reader = _READERS.get(source.kind, read_manifest)
    names = names_by_field(source)
    others: dict[str, None] = {}
    is_found = source.split is None
    for file in files:
        for record in reader(source, file, needs_text):
            values = RecordValues(names, file, record)
            if source.split is not None and not is_selected(source, values.split_name()):
                if len(others) < _MAX_NAMED:
                    others[values.split_name()] = None
                continue
            is_found = True
            row = to_row(source, values)
            if hash_fraction(row.id) < source.share:
                yield row
    if not is_found and others:
        there = ", ".join(repr(name) for name in others if name) or "no row says its split"
        raise AskdError(f"source {files[0].label}: no row of the split {source.split!r}: there is {there}")


def _audio_lies_beside(source: Source, files: Sequence[SourceFile]) -> bool:
    if source.kind == "parquet":
        return all(map_concurrently(lambda file: names_audio_files(source, file), files))
    return source.kind not in _HOLDS_AUDIO


class _Stamps:
    """Sizes and times of files, from one listing a folder: asking a store for each file would take hours."""

    def __init__(self) -> None:
        self._listed: dict[Location, dict[Location, tuple[int, int]]] = {}

    def of(self, file: Location) -> tuple[int, int]:
        """Return size and time of a file; a missing one is a matter of its row."""
        if file.parent not in self._listed:
            self._listed[file.parent] = stamped(file.parent)
        return self._listed[file.parent].get(file, (-1, -1))
