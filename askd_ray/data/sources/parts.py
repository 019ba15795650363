"""Divide sources into parts that are read independently: consecutive rows, in the order of the data."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile, source_files
from askd_ray.data.sources.parquet import in_row_groups
from askd_ray.data.sources.read import (
    MISSING,
    FileStamps,
    SplitNames,
    has_audio_files,
    rows_of_file,
    rows_of_files,
)
from askd_ray.data.sources.row import SourceRow
from askd_ray.errors import AskdError
from askd_ray.files import digest
from askd_ray.location import Location, map_concurrently

_FILES = 256  # whose metadata are read ahead: a store answers slowly


@dataclass(frozen=True)
class SourcePart:
    """A part of a source: a tar or row groups of a Parquet file, or rows that name audio files.

    ``key`` is a hash of everything that decides the part's rows. ``number`` is the source's number in the recipe, and
    ``label`` names it in messages. ``example`` is a file of the part, which every machine that reads it must have.
    """

    key: str
    number: int
    source: Source
    label: str
    file: SourceFile | None = None
    rows: tuple[SourceRow, ...] = ()
    example: Location | None = None

    def read(self, names: SplitNames, needs_text: bool) -> Iterator[SourceRow]:
        """Yield the rows in order, and note the splits of a file's rows in ``names``.

        Raises :class:`AskdError` as :func:`~askd_ray.data.sources.read.read_rows` does, and when ``example`` is not on
        this machine: its rows would be set aside as unreadable.
        """
        if self.example is not None and not self.example.is_file():
            raise AskdError(
                f"source {self.label}: {self.example} is not on this machine: all nodes of a cluster need the sources, "
                "on a shared disk or an object store"
            )
        yield from self.rows if self.file is None else rows_of_file(self.source, self.file, names, needs_text)


def source_parts(
    sources: Sequence[Source], fingerprints: Sequence[str], needs_text: bool, max_rows: int
) -> Iterator[SourcePart]:
    """Yield the parts of sources in order; ``fingerprints`` are those of their survey.

    A part has about ``max_rows`` rows, or is one tar or one row group. Rows that name audio files are read here.

    Raises :class:`AskdError` as :func:`~askd_ray.data.sources.read.read_rows` does.
    """
    for number, (source, fingerprint) in enumerate(zip(sources, fingerprints, strict=True)):
        files = source_files(source)
        label = files[0].label if files else source.path
        if not has_audio_files(source, files):
            pieces = _pieces(source, files, max_rows)
            yield from (SourcePart(key, number, source, label, file, (), file.location) for key, file in pieces)
            continue
        stamps, rows = FileStamps(), rows_of_files(source, files, needs_text)
        while some := tuple(itertools.islice(rows, max_rows)):
            key = digest([fingerprint, [vars(row) for row in some]])
            audio = (row.audio for row in some if isinstance(row.audio, Location))
            example = next((file for file in audio if stamps.of(file) != MISSING), None)
            yield SourcePart(key, number, source, label, None, some, example)


def _pieces(source: Source, files: Sequence[SourceFile], max_rows: int) -> Iterator[tuple[str, SourceFile]]:
    """Yield the pieces of files that hold their audio, each with its key."""
    stamps, settings = FileStamps(), source.model_dump(mode="json", exclude={"path"})
    for start in range(0, len(files), _FILES):
        some = files[start : start + _FILES]
        if source.kind == "parquet":
            some = itertools.chain(*map_concurrently(partial(in_row_groups, max_rows=max_rows), some))
        for piece in some:
            names = [str(piece.location), piece.label, piece.split, piece.values, piece.row_groups]
            yield digest([settings, names, stamps.of(piece.location)]), piece
