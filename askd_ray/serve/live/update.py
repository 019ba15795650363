"""Apply a client's update to the settings of a session.

An update changes only the fields that it contains, at every depth. Unsupported fields are ignored and listed, never an
error: clients send the same update to every server, and an error would also reject the supported settings.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from askd_ray.errors import AskdError
from askd_ray.serve.live.events import MAX_QUOTED_CHARS, EventError
from askd_ray.serve.live.settings import (
    BETA_FORMATS,
    LOGPROBS,
    AudioFormat,
    LiveVad,
    SessionSettings,
    TranscriptionSettings,
)
from askd_ray.text.languages import language_code

MAX_IGNORED = 50  # listed fields; an event may contain a hundred thousand
# The beta's transcription_session.update has the settings of the input at the top level.
_BETA_FIELDS = {f"input_audio_{name}": name for name in ("format", "transcription", "noise_reduction")}
_EAGERNESS_SILENCE_MS = {"low": 1000, "medium": 500, "auto": 500, "high": 300}
_NO_RESPONSES = "this service transcribes and makes no responses"
_REASONS = {
    "noise_reduction": "this service has no noise reduction",
    "create_response": _NO_RESPONSES,
    "interrupt_response": _NO_RESPONSES,
    "idle_timeout_ms": _NO_RESPONSES,
    "delay": "a word is sent as soon as it is known",
    "keywords": "only the prompt guides the transcription",
}
_Part = TypeVar("_Part", bound=BaseModel)


class Update:
    """A client's update, applied to the settings of a session.

    ``settings`` are the new settings, ``ignored`` the fields without effect, each with the reason.
    Raises :class:`EventError` for an invalid value.
    """

    def __init__(self, settings: SessionSettings, session: object):
        self.settings = settings
        self.ignored: list[dict[str, str]] = []
        readers: dict[str, Callable[[Any, str], None]] = {
            "type": self._type,
            "format": self._format,
            "transcription": self._transcription,
            "turn_detection": self._turn_detection,
            "noise_reduction": self._noise_reduction,
            "include": self._include,
        }
        for where, name, value in _fields_of(session):
            if name in readers:
                readers[name](value, where)
            elif value is not None:
                self._ignore(where)

    def _ignore(self, where: str, reason: str | None = None) -> None:
        if len(self.ignored) < MAX_IGNORED:
            why = reason or _REASONS.get(where.rpartition(".")[2], "this field is not known")
            self.ignored.append({"param": where[: 2 * MAX_QUOTED_CHARS], "reason": why})

    def _type(self, value: object, where: str) -> None:
        if value not in (None, "transcription"):
            raise EventError(f"{where}: only 'transcription' is served", param=where)

    def _format(self, value: object, where: str) -> None:
        if value is None:  # keep the format: it cannot be off, and a wrong one would turn audio into noise
            return
        fields = {"type": value} if isinstance(value, str) else _object(value, where)
        kind = fields.get("type")
        fields = {**fields, "type": BETA_FORMATS.get(kind, kind) if isinstance(kind, str) else kind}
        before = self.settings.format
        base = before if fields["type"] in (None, before.type) else AudioFormat()  # each type has different rates
        self.settings = replace(self.settings, format=self._merged(base, fields, where))

    def _transcription(self, value: object, where: str) -> None:
        if value is None:
            self.settings = replace(self.settings, transcription=None)
            return
        fields = _object(value, where)
        languages = fields.pop("languages", None)
        if isinstance(languages, list) and len(cast(list[Any], languages)) == 1 and not fields.get("language"):
            fields["language"] = cast(list[Any], languages)[0]
        elif languages:
            self._ignore(f"{where}.languages", "the language is detected, or set by `language`")
        merged = self._merged(self.settings.transcription or TranscriptionSettings(), fields, where)
        name = (merged.language or "").strip()
        try:
            language = language_code(name) if name else None
        except AskdError as error:
            raise EventError(str(error), param=f"{where}.language") from None
        merged = merged.model_copy(update={"language": language, "model": merged.model or None})
        self.settings = replace(self.settings, transcription=merged)

    def _turn_detection(self, value: object, where: str) -> None:
        if value is None:
            self.settings = replace(self.settings, turn_detection=None)
            return
        fields = _object(value, where)
        kind, eagerness = fields.pop("type", None), fields.pop("eagerness", None)
        if kind not in (None, "server_vad", "semantic_vad"):
            raise EventError(f"{where}.type: 'server_vad' or 'semantic_vad' is allowed", param=f"{where}.type")
        if eagerness is not None and not (isinstance(eagerness, str) and eagerness in _EAGERNESS_SILENCE_MS):
            allowed = ", ".join(_EAGERNESS_SILENCE_MS)
            raise EventError(f"{where}.eagerness: one of {allowed} is allowed", param=f"{where}.eagerness")
        if kind == "semantic_vad":
            self._ignore(
                f"{where}.type", "semantic_vad is served as server_vad: eagerness sets the length of the silence"
            )
        if kind == "semantic_vad" or eagerness is not None:
            fields = {"silence_duration_ms": _EAGERNESS_SILENCE_MS[eagerness or "auto"]} | fields
        merged = self._merged(self.settings.turn_detection or LiveVad(), fields, where)
        self.settings = replace(self.settings, turn_detection=merged)

    def _noise_reduction(self, value: object, where: str) -> None:
        if value is not None:
            self._ignore(where)

    def _include(self, value: object, where: str) -> None:
        if not isinstance(value, list | None):
            raise EventError(f"{where}: a list is expected", param=where)
        included = cast(list[Any], value or [])
        self.settings = replace(self.settings, logprobs=LOGPROBS in included)
        if any(name != LOGPROBS for name in included):
            self._ignore(where, f"only {LOGPROBS} can be included")

    def _merged(self, before: _Part, fields: dict[str, Any], where: str) -> _Part:
        """Return settings with the given fields changed; null restores the default of a field."""
        known = type(before).model_fields
        for name, value in fields.items():
            if name not in known and value is not None:
                self._ignore(f"{where}.{name}")
        merged = before.model_dump() | {name: value for name, value in fields.items() if name in known}
        try:
            return type(before).model_validate({name: value for name, value in merged.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join([where, *map(str, first["loc"])])
            raise EventError(f"{param}: {first['msg'].removeprefix('Value error, ')}", param=param) from None


def _fields_of(session: object) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the name and the value of each field of an update. A null object has no fields."""
    for name, value in _object(session, "session").items():
        where = f"session.{name}"
        if name != "audio":
            yield where, _BETA_FIELDS.get(name, "" if name in ("format", "transcription") else name), value
            continue
        for part, inside in _object({} if value is None else value, where).items():
            if part != "input":
                yield f"{where}.{part}", "", inside
                continue
            for field, content in _object({} if inside is None else inside, f"{where}.input").items():
                yield f"{where}.input.{field}", "" if field in ("type", "include") else field, content


def _object(value: object, where: str) -> dict[str, Any]:
    """Return a copy of a JSON object.

    Raises :class:`EventError` for anything else.
    """
    if not isinstance(value, dict):
        raise EventError(f"{where}: an object is expected", param=where)
    return dict(cast(dict[str, Any], value))
