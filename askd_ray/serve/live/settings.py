"""What a client may say of a session: OpenAI's ``session.update`` of the type ``transcription``."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from askd_ray.serve.forms import ServerVad
from askd_ray.serve.live.audio import WireFormat


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AudioFormat(_Part):
    """How the audio is written."""

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
        """The rate that is meant."""
        return self.rate or (24000 if self.type == "audio/pcm" else 8000)


class Transcribing(_Part):
    """Which model transcribes, and how."""

    model: str | None = None
    language: str | None = None
    prompt: str = ""


class LiveVad(ServerVad):
    """OpenAI's ``server_vad``, with its own defaults: a turn ends after half a second."""

    type: Literal["server_vad"] = "server_vad"
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 500
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2_000)] = 300


class Input(_Part):
    """What comes in."""

    format: AudioFormat = AudioFormat()
    transcription: Transcribing = Transcribing()
    turn_detection: LiveVad | None = LiveVad()
    noise_reduction: None = None


class Audio(_Part):
    """The audio of a session."""

    input: Input = Input()


class SessionSettings(_Part):
    """What ``session.update`` may say."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: tuple[str, ...] = ()
