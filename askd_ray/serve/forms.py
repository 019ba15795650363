"""Parse and validate the form of a request. Each field takes effect, or an error names it; no field is ignored.

OpenAI's clients write a list as ``name[]`` and an object as ``name[key]``. Other clients repeat the name or send JSON.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from askd_ray.audio.vad import VadOptions
from askd_ray.errors import AskdError, did_you_mean
from askd_ray.models.transcript import Decoding, Task
from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.formats import Format
from askd_ray.serve.limits import MAX_TEXT_BYTES
from askd_ray.serve.multipart import FormPart
from askd_ray.serve.transcription_service import Model, TranscribeOptions
from askd_ray.text.languages import language_code

FILE = "file"
Granularity = Literal["word", "segment"]
_LISTS, _OBJECTS = frozenset({"timestamp_granularities"}), frozenset({"chunking_strategy"})
_NULLABLE = frozenset({"stream", "chunking_strategy"})  # OpenAI's JavaScript client writes null as the text "null"
_NAME = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")
_STRATEGIES = "chunking_strategy: 'auto' or an object of the type server_vad is allowed"
_Validated = TypeVar("_Validated", bound=BaseModel)


@dataclass(frozen=True)
class TranscriptionRequest:
    """A validated request: how to transcribe, and how to format the response."""

    options: TranscribeOptions
    response_format: Format
    words: bool = False
    segments: bool = False
    stream: bool = False

    def check(self, model: Model) -> None:
        """Raise :class:`ApiError` 400 where the model does not support the language or the task."""
        language = self.options.language
        if language is not None and language not in model.languages:
            allowed = "only 'en' is allowed" if len(model.languages) == 1 else "it does not know this language"
            raise ApiError(400, f"language {language!r}: model {model.name!r}: {allowed}", "language")
        if self.options.decoding.task == "translate" and len(model.languages) == 1:
            (language,) = model.languages
            raise ApiError(400, f"The model {model.name!r} cannot translate: it knows {language!r} only.", "model")


class ServerVad(BaseModel):
    """OpenAI's ``chunking_strategy`` of the type ``server_vad``."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = VadOptions.threshold
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = round(1000 * VadOptions.silence_s)
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2_000)] = round(1000 * VadOptions.padding_s)

    def to_vad_options(self) -> VadOptions:
        """Return the settings as :class:`VadOptions`."""
        return VadOptions(self.threshold, self.silence_duration_ms / 1000, self.prefix_padding_ms / 1000)


class TranslationFields(BaseModel):
    """The form fields of a translation, except the file."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str = ""
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class TranscriptionFields(TranslationFields):
    """The form fields of a transcription, except the file."""

    language: str | None = None
    timestamp_granularities: list[Granularity] = Field(default_factory=list[Granularity])
    stream: bool = False
    chunking_strategy: str | dict[str, Any] = "auto"


def transcription(parts: Iterable[FormPart], query: Iterable[str] = ()) -> tuple[bytes, TranscriptionRequest]:
    """Return the file and the request of a transcription form; ``query`` are the names of the URL's parameters.

    Raises :class:`ApiError` 400 for an unknown field, a repeated field, a value that is not allowed, fields that
    exclude each other, and a form field in the URL.
    """
    file, fields = _read(TranscriptionFields, parts, query)
    response_format, granularities = fields.response_format, fields.timestamp_granularities
    if granularities and response_format != "verbose_json":
        raise ApiError(400, "timestamp_granularities needs response_format=verbose_json", "timestamp_granularities")
    if fields.stream and response_format not in ("json", "text"):
        raise ApiError(400, f"stream: {response_format} cannot be streamed, json and text can", "stream")
    request = _request(fields, "transcribe")
    options = replace(
        request.options, language=_language(fields.language), vad_options=_vad_options(fields.chunking_strategy)
    )
    words, segments = "word" in granularities, "segment" in (granularities or ("segment",))
    return file, replace(request, options=options, words=words, segments=segments, stream=fields.stream)


def translation(parts: Iterable[FormPart], query: Iterable[str] = ()) -> tuple[bytes, TranscriptionRequest]:
    """Return the file and the request of a translation form.

    Raises as :func:`transcription` does.
    """
    file, fields = _read(TranslationFields, parts, query)
    return file, replace(_request(fields, "translate"), segments=True)


def _request(fields: TranslationFields, task: Task) -> TranscriptionRequest:
    verbose = fields.response_format == "verbose_json"
    decoding = Decoding(
        prompt=fields.prompt,
        confidence=verbose or fields.response_format in ("srt", "vtt"),
        no_speech=verbose,
        temperature=fields.temperature,
        task=task,
    )
    return TranscriptionRequest(TranscribeOptions(fields.model, decoding=decoding), fields.response_format)


def _language(name: str | None) -> str | None:
    try:
        return None if name is None else language_code(name)
    except AskdError as error:
        raise ApiError(400, str(error), "language") from None


def _vad_options(strategy: str | dict[str, Any]) -> VadOptions:
    if strategy == "auto":
        return VadOptions()
    if isinstance(strategy, str):
        raise ApiError(400, _STRATEGIES, "chunking_strategy")
    return _validated(ServerVad, strategy, "chunking_strategy").to_vad_options()


def _read(kind: type[_Validated], parts: Iterable[FormPart], query: Iterable[str]) -> tuple[bytes, _Validated]:
    known = [FILE, *kind.model_fields]
    for name in query:
        if _base(name) in known:
            raise ApiError(400, f"{name}: a form field, it is not read from the URL", _base(name))
    values: dict[str, list[tuple[str | None, FormPart]]] = {}
    for part in parts:
        match = _NAME.fullmatch(part.name)
        if match is None or match[1] not in known:
            allowed = f"allowed are {', '.join(known)}{did_you_mean(_base(part.name), known)}"
            raise ApiError(400, f"{part.name[:100]}: this field is unknown; {allowed}", part.name[:100])
        values.setdefault(match[1], []).append((match[2], part))
    files = values.pop(FILE, [])
    if not files:
        raise ApiError(400, 'file: an audio file is expected in the part "file"', FILE)
    if len(files) > 1 or files[0][0] is not None:
        raise ApiError(400, f"file: one file is expected, named {FILE!r}", FILE)
    fields = {name: value for name, given in values.items() if (value := _value(name, given)) is not None}
    return files[0][1].content, _validated(kind, fields)


def _base(name: str) -> str:
    return name.partition("[")[0]


def _value(name: str, given: Sequence[tuple[str | None, FormPart]]) -> Any:
    """Return the value of a field: text, a list or an object; None where all its parts are empty."""
    pairs = [(key, text) for key, part in given if (text := _text(name, part)) != ""]
    if name in _NULLABLE and pairs == [(None, "null")]:
        return None
    if not pairs:
        return None
    keys = [key for key, _ in pairs]
    if name in _LISTS:
        wrong = next((key for key in keys if key and not key.isdecimal()), None)
        if wrong is not None:
            raise ApiError(400, f"{name}[{wrong[:50]}]: {name} is a list, name its values {name}[]", name)
        return [entry for _, text in pairs for entry in _list_values(name, text)]
    if name in _OBJECTS and None not in keys:
        if len(set(keys)) < len(keys):
            raise ApiError(400, f"{name}: a key occurs twice", name)
        return dict(pairs)
    if len(pairs) > 1:
        raise ApiError(400, f"{name}: the field occurs {len(pairs)} times, once is allowed", name)
    if keys[0] is not None:
        raise ApiError(400, f"{name}[{keys[0][:50]}]: {name} has a single value, name it {name}", name)
    return _parse_json(_STRATEGIES, pairs[0][1], dict, name) if name in _OBJECTS else pairs[0][1]


def _text(name: str, part: FormPart) -> str:
    if len(part.content) > MAX_TEXT_BYTES:
        raise ApiError(400, f"{name}: at most {MAX_TEXT_BYTES} bytes are allowed", name)
    return part.text()


def _list_values(name: str, text: str) -> list[Any]:
    parsed = _parse_json(f"{name}: values named {name}[], or a JSON list, are expected", text, list, name)
    return parsed if isinstance(parsed, list) else [parsed]


def _parse_json(expected: str, text: str, kind: type, name: str) -> Any:
    """Parse a JSON list or object; return a text unchanged if it does not begin as one."""
    if not text.lstrip().startswith("[{"[kind is dict]):
        return text
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError):
        raise ApiError(400, expected, name) from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _validated(kind: type[_Validated], values: dict[str, Any], param: str | None = None) -> _Validated:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        names = [*([] if param is None else [param]), *map(str, first["loc"])]
        raise ApiError(400, f"{'.'.join(names)[:100]}: {first['msg']}", names[0]) from None
