"""What a request's form may hold, and what it asks for."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fastapi import Form
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from askd_ray.audio.vad import Turns
from askd_ray.models.engine import Decoding, Task
from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.formats import Format
from askd_ray.serve.recogniser import Ask, Model

Granularity = Literal["word", "segment"]
_Temperature = Annotated[float, Form(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Wanted:
    """What a request asks for."""

    ask: Ask
    form: Format
    words: bool = False
    segments: bool = False
    stream: bool = False

    def check(self, model: Model) -> None:
        """Refuse what the model cannot do.

        Raises :class:`ApiError` 400.
        """
        language = self.ask.language
        if language is not None and language not in model.languages:
            known = "only 'en' is allowed" if len(model.languages) == 1 else "it is none of Whisper's language codes"
            raise ApiError(400, f"language {language!r}: {known} for the model {model.name!r}", "language")
        if self.ask.decoding.task == "translate" and len(model.languages) == 1:
            raise ApiError(400, f"The model {model.name!r} knows English only: it cannot translate.", "model")


class ServerVad(BaseModel):
    """OpenAI's ``chunking_strategy`` of the type ``server_vad``."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Turns.threshold
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = round(1000 * Turns.silence_s)
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2_000)] = round(1000 * Turns.padding_s)

    def turns(self) -> Turns:
        """Return it in our words."""
        return Turns(self.threshold, self.silence_duration_ms / 1000, self.prefix_padding_ms / 1000)


async def transcription(
    model: Annotated[str, Form()],
    language: Annotated[str | None, Form()] = None,
    prompt: Annotated[str, Form()] = "",
    response_format: Annotated[Format, Form()] = "json",
    temperature: _Temperature = 0.0,
    granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
    stream: Annotated[bool, Form()] = False,
    chunking_strategy: Annotated[str, Form()] = "auto",
) -> Wanted:
    """Read the form of a transcription.

    Raises :class:`ApiError` 400 for fields that do not go together.
    """
    if granularities and response_format != "verbose_json":
        raise ApiError(400, "timestamp_granularities needs response_format=verbose_json", "timestamp_granularities")
    if stream and response_format not in ("json", "text"):
        raise ApiError(400, f"stream: {response_format} cannot be streamed, json and text can", "stream")
    wanted = _wanted(model, prompt, response_format, temperature, "transcribe")
    words, segments = "word" in (granularities or ()), "segment" in (granularities or ("segment",))
    ask = replace(wanted.ask, language=language or None, turns=_turns(chunking_strategy))
    return replace(wanted, ask=ask, words=words, segments=segments, stream=stream)


async def translation(
    model: Annotated[str, Form()],
    prompt: Annotated[str, Form()] = "",
    response_format: Annotated[Format, Form()] = "json",
    temperature: _Temperature = 0.0,
) -> Wanted:
    """Read the form of a translation."""
    return replace(_wanted(model, prompt, response_format, temperature, "translate"), segments=True)


def _wanted(model: str, prompt: str, form: Format, temperature: float, task: Task) -> Wanted:
    timed = form in ("verbose_json", "srt", "vtt")
    decoding = Decoding(previous=prompt, confidence=timed, temperature=temperature, task=task)
    return Wanted(Ask(model, decoding=decoding), form)


def _turns(strategy: str) -> Turns:
    """Return what a ``chunking_strategy`` asks for: ``auto``, or JSON."""
    if strategy == "auto":
        return Turns()
    try:
        return ServerVad.model_validate(json.loads(strategy)).turns()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["chunking_strategy", *map(str, first["loc"])])
        raise ApiError(400, f"{where}: {first['msg']}", "chunking_strategy") from None
    except (ValueError, RecursionError):
        message = "chunking_strategy: 'auto' or an object of the type server_vad is allowed"
        raise ApiError(400, message, "chunking_strategy") from None
