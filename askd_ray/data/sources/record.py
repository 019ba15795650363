"""The records that readers yield, and their conversion to rows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

from askd_ray.config.source import RowField, Source, SourceKind
from askd_ray.data.schema import Split
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.row import SourceRow
from askd_ray.data.sources.splits import split_to_keep
from askd_ray.errors import AskdError
from askd_ray.location import Location

_T = TypeVar("_T")
_TEXT_FIELDS: tuple[RowField, ...] = ("text", "id", "speaker", "domain", "language", "licence", "split")
_FIELDS: tuple[RowField, ...] = ("audio", *_TEXT_FIELDS, "start_s", "end_s", "duration_s", "channel")
_MAX_SECONDS = 1e7  # four months: decoders fail unpredictably on larger times
_MAX_CHANNEL = 255
_MAX_QUOTED_CHARS = 60

_OTHER_NAMES: dict[RowField, tuple[str, ...]] = {
    "channel": (),  # outside manifests, a column of this name has other meanings
    "text": ("text", "sentence", "transcription"),
    "speaker": ("speaker", "speaker_id"),
    "licence": ("licence", "license"),
}
_COLUMNS: dict[SourceKind, dict[RowField, tuple[str, ...]]] = {
    "parquet": _OTHER_NAMES,
    "webdataset": _OTHER_NAMES,
    "audiofolder": {**_OTHER_NAMES, "audio": ("file_name",)},
    "nemo": {
        "audio": ("audio_filepath",),
        "start_s": ("offset",),
        "duration_s": ("duration",),
        "language": ("lang", "language"),
        "channel": (),
    },
    "common_voice": {
        "audio": ("path",),
        "text": ("sentence",),
        "speaker": ("client_id",),
        "language": ("locale",),
        "channel": (),
    },
}


@dataclass(frozen=True)
class SourceRecord:
    """A row as its reader yields it: ``values`` by the column names of the data.

    ``audio`` is the audio file's bytes, or its path for :meth:`SourceFile.resolve`; None: a column names the path.
    ``path`` is the name of the bytes. ``id`` is the default id, used if no column has one; "": the audio's path.
    ``problem`` becomes that of :class:`SourceRow`.
    """

    values: Mapping[str, Any]
    where: str
    audio: bytes | str | None = None
    path: str = ""
    id: str = ""
    problem: str = ""


class _UnusableError(Exception):
    """A value that makes its row unusable; the message is the row's problem."""


def names_of(source: Source, field: RowField) -> tuple[str, ...]:
    """Return the columns that may hold a field; the first one with a value counts."""
    if field in source.columns:
        return (source.columns[field],)
    return _COLUMNS.get(source.kind, {}).get(field, (field,))


def names_by_field(source: Source) -> dict[RowField, tuple[str, ...]]:
    """Return the columns that may hold each field."""
    return {field: names_of(source, field) for field in _FIELDS}


def known_columns(source: Source) -> list[str]:
    """Return all columns that are read."""
    return [name for names in names_by_field(source).values() for name in names]


def to_row(source: Source, values: "RecordValues") -> SourceRow:
    """Convert a record to a row; the recipe's source fills in missing values.

    A value that cannot be used becomes the row's ``problem``.

    Raises :class:`AskdError` for times that are not numbers.
    """
    record, file = values.record, values.file
    problems = [record.problem] if record.problem else []

    def read_or_default(read: Callable[[], _T], default: _T) -> _T:
        try:
            return read()
        except _UnusableError as error:
            problems.append(str(error))
            return default

    path = read_or_default(values.path, "")
    audio = read_or_default(partial(values.audio, path), b"")
    start_s, end_s, channel = None, None, None
    if isinstance(audio, Location):  # bytes are the chunk itself: their times and channel are not used
        start_s, end_s = read_or_default(values.chunk, (None, None))
        channel = read_or_default(values.channel, None)
    texts = {field: read_or_default(partial(values.text, field), "") for field in _TEXT_FIELDS if field in values}
    get = texts.get
    split = read_or_default(partial(_split, source, get("split") or file.split), "")
    default_id = record.id
    if not default_id:
        chunk = "" if start_s is None and end_s is None else f"@{start_s or 0.0}-{end_s or ''}"
        side = "" if channel is None else f"#{channel}"
        default_id = f"{file.label_of(path)}{chunk}{side}" if path else record.where
    if channel is None and source.channel != "mix":
        channel = source.channel
    read_or_default(partial(_check_characters, "audio", default_id), None)
    return SourceRow(
        id=get("id") or _printable(default_id),
        audio=b"" if problems else audio,
        path=path,
        text=_apply_case(" ".join(get("text", "").split()), source),
        speaker=get("speaker", ""),
        language=get("language") or source.language,
        domain=get("domain") or source.domain,
        licence=get("licence") or source.licence,
        split=cast(Split | Literal[""], split),
        where=_printable(record.where),
        start_s=start_s,
        end_s=end_s,
        channel=channel,
        problem=_printable(problems[0]) if problems else "",
    )


class RecordValues:
    """The values of a record by field; ``names`` are the columns of each field."""

    def __init__(self, names: Mapping[RowField, tuple[str, ...]], file: SourceFile, record: SourceRecord) -> None:
        self.file, self.record = file, record
        given: dict[RowField, Any] = {field: self._first(columns) for field, columns in names.items()}
        self._values = {
            field: value for field, value in given.items() if value is not None and not _is_missing(field, value)
        }

    def __contains__(self, field: RowField) -> bool:
        return field in self._values

    def text(self, field: RowField) -> str:
        """Return the text of a field, or "" if it is missing."""
        return _text(field, self._values[field]) if field in self._values else ""

    def split_name(self) -> str:
        """Return the name of the row's split in the data, or "" if there is none or it is no text."""
        try:
            return self.text("split") or self.file.split
        except _UnusableError:
            return ""

    def path(self) -> str:
        """Return the path of the audio; of bytes, it only says what they were."""
        if self.record.audio is None:
            return self.text("audio")
        path = self.record.audio if isinstance(self.record.audio, str) else self.record.path
        _check_characters("audio", path)
        return path

    def audio(self, path: str) -> bytes | Location:
        """Return the audio file's bytes or its location."""
        if isinstance(self.record.audio, bytes):
            return self.record.audio
        if not path:
            raise _UnusableError("no audio: the row names none")
        try:
            return self.file.resolve(path)
        except AskdError as error:
            raise _UnusableError(f"unreadable audio: {error}") from None

    def chunk(self) -> tuple[float | None, float | None]:
        """Return start and end of the chunk in seconds; a duration is used only with a start."""
        start_s, end_s, duration_s = (self._seconds(field) for field in ("start_s", "end_s", "duration_s"))
        if end_s is None and start_s is not None and duration_s is not None:
            end_s = start_s + duration_s
        begin = start_s or 0.0
        if not 0 <= begin < _MAX_SECONDS or (end_s is not None and not begin < end_s < _MAX_SECONDS):
            end = "the end" if end_s is None else f"{end_s:g} s"
            raise _UnusableError(f"unreadable audio: no chunk from {begin:g} s to {end}")
        return start_s, end_s

    def channel(self) -> int | None:
        """Return the row's channel of the recording, or None for the mean of all channels."""
        text = self.text("channel")
        if text and not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) <= _MAX_CHANNEL):
            raise _UnusableError(f"unusable channel: {_quoted(text)}, and a number from 0 to {_MAX_CHANNEL} is needed")
        return int(text) if text else None

    def _first(self, columns: tuple[str, ...]) -> Any:
        for values in (self.record.values, self.file.values):
            for name in columns:
                value = values.get(name)
                if value is not None and value != "":
                    return value
        return None

    def _seconds(self, field: RowField) -> float | None:
        value = self._values.get(field)
        if value is None:
            return None
        try:
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if not math.isfinite(seconds):
            raise AskdError(f"{self.record.where}: {field} = {value!r}: a number of seconds is needed")
        return seconds


def _split(source: Source, name: str) -> Split | Literal[""]:
    try:
        return split_to_keep(source, name)
    except ValueError as error:
        raise _UnusableError(f"unknown split: {error}") from None


def _text(field: RowField, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _UnusableError(f"{field} is not UTF-8: {error.reason} at byte {error.start}") from None
    if isinstance(value, float) and value.is_integer() and field != "text":
        value = int(value)  # tables with missing values hold numbers as 12.0
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _UnusableError(
            f"unusable {field}: a text is needed, and it is the {type(value).__name__} {_quoted(str(value))}"
        )
    _check_characters(field, value)
    return value.removeprefix("\ufeff")


def _check_characters(field: RowField, text: str) -> None:
    """Refuse characters that no file can hold: half a character (a lone surrogate), and NUL."""
    reason = "damaged text" if field == "text" else f"unusable {field}"
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError(f"{reason}: {_quoted(text)} is not UTF-8") from None
    if "\0" in text:
        raise _UnusableError(f"{reason}: {_quoted(text)} holds NUL characters")


def _is_missing(field: RowField, value: Any) -> bool:
    """Whether a value is NaN, the mark of a missing value in tables; a NaN time is an error instead."""
    return isinstance(value, float) and math.isnan(value) and not field.endswith("_s")


def _printable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode()


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}...")


def _apply_case(text: str, source: Source) -> str:
    return text.capitalize() if source.case == "sentence" and text.isupper() else text
