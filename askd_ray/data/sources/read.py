"""Read the rows of sources, and survey sources without reading their audio."""

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
"""Yields the records of a file; the last argument, ``needs_text``, says whether a text column is required."""

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
    """A fingerprint and the number of rows of sources; ``n_rows`` is None if it needs reading the audio."""

    fingerprint: str
    n_rows: int | None


def survey(sources: Sequence[Source], needs_text: bool = True) -> Survey:
    """Return a hash of the names, sizes and times of all files of the sources, with audio files, and the row count.

    Raises :class:`AskdError` for a source that is missing or malformed.
    """
    stamps = _Stamps()
    files: dict[Location, tuple[int, int]] = {}
    counts: list[int | None] = []
    for source in sources:
        parts = source_files(source)
        files |= {file.location: stamps.of(file.location) for file in parts}
        is_whole = source.split is None and source.share == 1.0
        if _has_audio_files(source, parts):
            rows = [row.audio for row in _rows(source, parts, needs_text)]
            files |= {audio: stamps.of(audio) for audio in rows if isinstance(audio, Location)}
            counts.append(len(rows) if is_whole else None)
        elif source.kind == "parquet" and is_whole:
            counts += map_concurrently(count_rows, [file.location for file in parts])
        else:
            counts.append(None)
    n_rows = None if None in counts else sum(n for n in counts if n is not None)
    return Survey(digest([[file.name, *stamp] for file, stamp in files.items()]), n_rows)


def read_rows(source: Source, needs_text: bool = True) -> Iterator[SourceRow]:
    """Yield the rows of a source in order. Audio in tars and Parquet is included; audio files are not read yet.

    A row that cannot be used has a ``problem``.

    Raises :class:`AskdError` if the whole source is unusable: missing, damaged, an unknown or missing column (the text
    column only if ``needs_text``), or no row of the selected split.
    """
    yield from _rows(source, source_files(source), needs_text)


def _rows(source: Source, files: Sequence[SourceFile], needs_text: bool) -> Iterator[SourceRow]:
    reader = _READERS.get(source.kind, read_manifest)
    names = names_by_field(source)
    others: dict[str, None] = {}
    split_exists = source.split is None
    for file in files:
        for record in reader(source, file, needs_text):
            values = RecordValues(names, file, record)
            if source.split is not None and not is_selected(source, values.split_name()):
                if len(others) < _MAX_NAMED:
                    others[values.split_name()] = None
                continue
            split_exists = True
            row = to_row(source, values)
            if hash_fraction(row.id) < source.share:
                yield row
    if not split_exists and others:
        names = ", ".join(repr(name) for name in others if name) or "no row says its split"
        raise AskdError(f"source {files[0].label}: no row of the split {source.split!r}: there is {names}")


def _has_audio_files(source: Source, files: Sequence[SourceFile]) -> bool:
    if source.kind == "parquet":
        return all(map_concurrently(lambda file: names_audio_files(source, file), files))
    return source.kind not in _HOLDS_AUDIO


class _Stamps:
    """Sizes and times of files, from one listing per folder: one request per file would take hours on a store."""

    def __init__(self) -> None:
        self._listed: dict[Location, dict[Location, tuple[int, int]]] = {}

    def of(self, file: Location) -> tuple[int, int]:
        """Return size and time of a file; (-1, -1) if it is missing, which becomes a problem of its row."""
        if file.parent not in self._listed:
            self._listed[file.parent] = stamped(file.parent)
        return self._listed[file.parent].get(file, (-1, -1))
