"""Readers of tables that name audio files: manifests, and layouts that are manifests with other column names."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO, cast

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.record import SourceRecord, known_columns, names_of
from askd_ray.errors import AskdError, did_you_mean
from askd_ray.location import Location

_CLIPS = {"common_voice": "clips"}  # the audio folder, for layouts whose rows do not name it
_MAX_QUOTED_COLUMNS = 12


def read_manifest(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the rows of a JSONL, JSON, TSV or CSV file.

    Raises :class:`AskdError` for malformed lines, and for unknown or missing columns; the text column may be missing
    unless ``needs_text``.
    """
    columns, checked = known_columns(source), set[str]()
    refuses = source.kind == "manifest" and source.unknown_columns == "refuse"
    folder, audio_column = _CLIPS.get(source.kind), names_of(source, "audio")[0]
    for line, values in read_table(file.location):
        where = f"{file.location}:{line}"
        if values.keys() != checked:
            unknown = next((name for name in values if name not in columns), None) if refuses else None
            if unknown is not None:
                hint = did_you_mean(unknown, columns)
                ways = "columns: {text: NAME} names others, unknown_columns: ignore skips them"
                raise AskdError(f"{where}: unknown column {unknown!r}: allowed are {', '.join(columns)}; {ways}{hint}")
            _check_columns(source, {**file.values, **values}, where, needs_text)
            checked = set(values)
        audio = values.get(audio_column) if folder else None
        yield SourceRecord(
            values, where, str(PurePath(folder) / audio) if folder and isinstance(audio, str) and audio else None
        )


def read_table(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and values of each line of a JSONL, TSV or CSV file, or of each item of a JSON file's list.

    Raises :class:`AskdError` for a malformed file.
    """
    suffix = PurePath(file.name.lower().removesuffix(".gz")).suffix
    records = {".jsonl": _json_lines, ".json": _json_file}.get(suffix, _table_lines)
    yield from records(file)


@contextmanager
def open_text(file: Location, newline: str | None = None) -> Generator[io.TextIOWrapper]:
    """Open a text file; .gz files are decompressed, and a byte order mark is skipped.

    Raises :class:`AskdError` when the file cannot be read, or is not UTF-8 text.
    """
    with file.explain("cannot be read", EOFError, zlib.error):
        stream = cast(BinaryIO, file.stream())
        if file.name.lower().endswith(".gz"):
            stream = cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=stream)))
        try:
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text:
                yield text
        except UnicodeDecodeError as error:
            raise AskdError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises :class:`AskdError` that starts with ``where`` for anything else, and for a repeated name.
    """
    return _as_object(_parse(text, where), where)


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise AskdError(f"{where}: not JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        _refuse_repeats([name for name, _ in pairs])
    return values


def _refuse_repeats(names: list[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"the name {name!r} occurs {count} times")


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AskdError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return cast(dict[str, Any], value)


def _json_lines(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json_object(line, f"{file}:{number}")


def _json_file(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the items of a list, or of JSON lines: NeMo's manifests have the suffix .json."""
    with open_text(file) as lines:
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):
            items = _parse(first + lines.read(), str(file))
            yield from ((n, _as_object(item, f"{file}:{n}")) for n, item in enumerate(cast(list[Any], items), start=1))
            return
    yield from _json_lines(file)


def _table_lines(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    is_tsv = ".tsv" in file.name.lower()[-7:]
    # In TSV a quotation mark is an ordinary character, except around a whole cell, as CSV writers quote it.
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if is_tsv else (",", csv.QUOTE_MINIMAL)
    with open_text(file, newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise AskdError(f"{file}:1: no header: its first line names the columns")
            _refuse_repeats(header)
            end = reader.line_num
            for cells in reader:
                begin, end = end + 1, reader.line_num
                if len(cells) not in (0, len(header)):
                    raise AskdError(f"{file}:{begin}: {len(cells)} cells, and the header has {len(header)}")
                if end > begin:
                    _check_quotes(cells, f"{file}:{begin}")
                if cells:
                    yield begin, dict(zip(header, map(_unquoted, cells) if is_tsv else cells, strict=True))
        except (csv.Error, ValueError) as error:
            if isinstance(error, (AskdError, UnicodeDecodeError)):
                raise
            raise AskdError(f"{file}:{reader.line_num}: {error}") from None


_LOOKS_LIKE_AUDIO = re.compile(r"\.(wav|flac|ogg|opus|mp3|m4a|mp4|aac|webm|wma|aiff?|amr|sph)\b", re.IGNORECASE)


def _check_quotes(cells: list[str], where: str) -> None:
    """Refuse a cell over several lines if a later line looks like a row: a quotation mark is probably not closed."""
    for cell in cells:
        _, *later = cell.splitlines() or [""]
        for line in later:
            if "," in line and _LOOKS_LIKE_AUDIO.search(line):
                raise AskdError(
                    f"{where}: a quoted cell continues on the next line, which looks like a row ({line[:40]!r}): is a "
                    "quotation mark not closed?"
                )


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "")
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner:
        return cell[1:-1].replace('""', '"')
    return cell


def _check_columns(source: Source, values: dict[str, Any], where: str, needs_text: bool) -> None:
    for field in ("audio", "text") if needs_text else ("audio",):
        names = names_of(source, field)
        if not any(name in values for name in names):
            has = ", ".join(list(values)[:_MAX_QUOTED_COLUMNS])
            raise AskdError(
                f"{where}: no column {' or '.join(map(repr, names))}: it has {has}; columns: {{{field}: NAME}} names it"
            )
