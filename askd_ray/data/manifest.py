"""Manifests: JSONL, TSV or CSV files that name audio files and what is said in them."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from askd_ray.errors import AskdError, did_you_mean
from askd_ray.location import Location

COLUMNS = ("audio", "text", "id", "speaker", "domain", "language", "licence", "split", "start_s", "end_s")
"""The columns of a manifest; the first two must be there."""

SUFFIXES = (".jsonl", ".tsv", ".csv")
"""What a manifest's name ends with."""


def manifest_file(root: Location) -> Location:
    """Return the manifest itself: ``root``, or the only manifest.{jsonl,tsv,csv} in the folder ``root``.

    Raises :class:`AskdError` when there is none, or more than one.
    """
    if not root.is_file():
        found = [file for file in root.files("manifest.*") if file.suffix in SUFFIXES]
        if len(found) != 1:
            allowed = ", ".join(f"manifest{suffix}" for suffix in SUFFIXES)
            raise AskdError(f"source {root}: {len(found)} manifests in it, and exactly one of {allowed} is needed")
        return found[0]
    if root.suffix not in SUFFIXES:
        raise AskdError(f"source {root}: a manifest is a {', '.join(SUFFIXES)} file, or a folder that holds one")
    return root


def read_manifest(file: Location, needs_text: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row as ``"FILE:LINE"`` and its values by :data:`COLUMNS`.

    Raises :class:`AskdError` for broken lines, and for unknown or missing columns; without ``needs_text`` the column
    ``text`` may be missing.
    """
    records = _json_records(file) if file.suffix == ".jsonl" else _table_records(file)
    try:
        with file.explain("cannot be read"):
            for line, record in records:
                where = f"{file}:{line}"
                _check_columns(record, where, COLUMNS[: 2 if needs_text else 1])
                yield where, record
    except UnicodeDecodeError as error:
        raise AskdError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises :class:`AskdError` that starts with ``where`` for anything else.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AskdError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise AskdError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _json_records(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    with _text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json_object(line, f"{file}:{number}")


def _table_records(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    # In TSV a quotation mark is only a character.
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if file.suffix == ".tsv" else (",", csv.QUOTE_MINIMAL)
    with _text(file, newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        try:
            header = next(reader, None)
            if header is None:
                raise AskdError(f"{file}:1: no header: the columns are {', '.join(COLUMNS)}")
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    raise AskdError(f"{file}:{reader.line_num}: {len(cells)} cells, and the header has {len(header)}")
                if cells:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise AskdError(f"{file}:{reader.line_num}: {error}") from None


def _text(file: Location, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(cast(BinaryIO, file.stream()), encoding="utf-8-sig", newline=newline)


def _check_columns(record: Mapping[str, Any], where: str, needed: tuple[str, ...]) -> None:
    for name in record:
        if name not in COLUMNS:
            hint = did_you_mean(name, list(COLUMNS))
            raise AskdError(f"{where}: unknown column {name!r}: allowed are {', '.join(COLUMNS)}{hint}")
    for name in needed:
        if name not in record:
            raise AskdError(f"{where}: no column {name!r}")
    if not record["audio"]:
        raise AskdError(f"{where}: no path in the column 'audio'")
