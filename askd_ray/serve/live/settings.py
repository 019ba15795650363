"""The settings of a session of the type ``transcription``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from askd_ray.audio.vad import VadOptions
from askd_ray.serve.live.audio import WireFormat
from askd_ray.serve.live.events import MAX_QUOTED_CHARS, EventError, quoted
from askd_ray.serve.transcription_service import Model

LOGPROBS = "item.input_audio_transcription.logprobs"
BETA_FORMATS: dict[str, WireFormat] = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_MAX_PROMPT_CHARS = 4000  # the end of the prompt is used, up to the positions of the model: a few hundred tokens


def _fitting_prompt(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return text[-_MAX_PROMPT_CHARS:]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class AudioFormat(_Settings):
    """The encoding of the client's audio."""

    type: WireFormat = "audio/pcm"
    rate: Literal[8000, 16000, 24000] | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> "AudioFormat":
        allowed = (16000, 24000) if self.type == "audio/pcm" else (8000,)
        if self.rate is not None and self.rate not in allowed:
            raise ValueError(f"rate of {self.type} may be {' or '.join(map(str, allowed))}")
        return self

    @property
    def rate_hz(self) -> int:
        """The sample rate, by default that of the type."""
        return self.rate or (24000 if self.type == "audio/pcm" else 8000)


class TranscriptionSettings(_Settings):
    """The model (None: the default of the session), the language (None: detect it) and the prompt."""

    model: str | None = None
    language: Annotated[str | None, Field(max_length=MAX_QUOTED_CHARS)] = None
    prompt: Annotated[str, AfterValidator(_fitting_prompt)] = ""


class LiveVad(_Settings):
    """OpenAI's ``server_vad`` with its defaults: a turn ends after half a second of silence."""

    threshold: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] = VadOptions.threshold
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2_000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 500

    def to_vad_options(self) -> VadOptions:
        """Return the settings as :class:`VadOptions`."""
        return VadOptions(self.threshold, self.silence_duration_ms / 1000, self.prefix_padding_ms / 1000)


@dataclass(frozen=True)
class SessionSettings:
    """The settings of a session; None disables ``transcription`` or ``turn_detection``."""

    format: AudioFormat = field(default_factory=AudioFormat)
    transcription: TranscriptionSettings | None = field(default_factory=TranscriptionSettings)
    turn_detection: LiveVad | None = field(default_factory=LiveVad)
    logprobs: bool = False

    def as_session(self, default_model: str) -> dict[str, Any]:
        """Return the fields of OpenAI's session object."""
        form, detection = self.format, self.turn_detection
        audio = {
            "format": {"type": form.type, **({"rate": form.rate_hz} if form.type == "audio/pcm" else {})},
            "transcription": self._transcription(default_model),
            "turn_detection": None if detection is None else {"type": "server_vad", **detection.model_dump()},
            "noise_reduction": None,
        }
        return {"type": "transcription", "audio": {"input": audio}, "include": [LOGPROBS] if self.logprobs else []}

    def as_beta_session(self, default_model: str) -> dict[str, Any]:
        """Return the fields of the session object of OpenAI's beta."""
        detection = self.turn_detection
        return {
            "input_audio_format": next(name for name, form in BETA_FORMATS.items() if form == self.format.type),
            "input_audio_transcription": self._transcription(default_model),
            "input_audio_noise_reduction": None,
            "turn_detection": None if detection is None else {"type": "server_vad", **detection.model_dump()},
            "include": [LOGPROBS] if self.logprobs else [],
        }

    def _transcription(self, default_model: str) -> dict[str, Any] | None:
        settings = self.transcription
        return None if settings is None else {**settings.model_dump(), "model": settings.model or default_model}

    def check(self, models: Sequence[Model], default_model: str) -> None:
        """Raise :class:`EventError` for a model that is not served, and a language that the model does not know."""
        settings, where = self.transcription, "session.audio.input.transcription"
        if settings is None:
            return
        name = settings.model or default_model
        model = next((served for served in models if served.name == name), None)
        if model is None:
            served = ", ".join(quoted(model.name) for model in models) or "none"
            message = f"The model {quoted(name)} does not exist: {served} is served here."
            raise EventError(message, "model_not_found", f"{where}.model")
        if settings.language is not None and settings.language not in model.languages:
            message = f"{where}.language: the model {quoted(name)} does not know {settings.language!r}"
            raise EventError(message, param=f"{where}.language")
