"""The recipe's ``data.derive``: clips that `askd prepare` makes of the data (docs/prepare.md)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from askd_ray.config.section import Section, check_order
from askd_ray.files import check_place

PerUtterance = Annotated[float, Field(ge=0.0, le=100.0)]
Seconds = Annotated[float, Field(ge=0.1, le=30.0)]


class Crops(Section):
    """Short clips that are cut out of train utterances: with them a student learns to stop."""

    per_utterance: PerUtterance = 1.0
    """The number of crops per train utterance; 0 makes none."""
    duration_s: tuple[Seconds, Seconds] = (0.3, 4.0)
    """The length of a crop in seconds, drawn from [min, max]; its logarithm is uniform."""
    text: Literal["teacher", "reference"] = "teacher"
    """The target text. ``teacher``: the crop is cut anywhere, and the teacher transcribes it. ``reference``: the crop
    is cut at quiet points, and kept if the teacher's transcript is a part of the reference, so that it is right."""

    @model_validator(mode="after")
    def _check_fields(self) -> "Crops":
        if self.per_utterance == 0.0:
            self.refuse_unread(["duration_s", "text"], "per_utterance is 0")
        check_order("duration_s", self.duration_s)
        return self


class Stitched(Section):
    """Long clips that are joined from train utterances: short utterances alone make a student forget long speech."""

    per_utterance: PerUtterance = 0.1
    """The number of stitched clips per train utterance; 0 makes none."""
    duration_s: tuple[Seconds, Seconds] = (8.0, 28.0)
    """The greatest length of a clip in seconds, drawn from [min, max]."""
    pause_s: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(le=5.0)]] = (0.1, 0.8)
    """The silence between two utterances in seconds, drawn from [min, max]."""
    mixed_speakers: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """The share of clips that join several speakers, if there are several."""

    @model_validator(mode="after")
    def _check_fields(self) -> "Stitched":
        if self.per_utterance == 0.0:
            self.refuse_unread(["duration_s", "pause_s", "mixed_speakers"], "per_utterance is 0")
        check_order("duration_s", self.duration_s)
        check_order("pause_s", self.pause_s)
        return self


class NonSpeechClips(Section):
    """Clips without speech and with the empty text: with them a student learns to stay silent.

    Half of them are pauses of the utterances, if there are any; the others are parts of synthetic sounds (noise,
    silence, music, tones) and of ``files``.
    """

    per_utterance: PerUtterance = 0.15
    """The number of clips per train utterance; 0 makes none."""
    duration_s: tuple[Seconds, Seconds] = (0.3, 10.0)
    """The length of a clip in seconds, drawn from [min, max]; its logarithm is uniform."""
    files: str | None = None
    """A pattern of recordings without speech, such as ``noise/*.ogg``; null takes synthetic sounds only."""

    @field_validator("files")
    @classmethod
    def _check_local_path(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given)

    @model_validator(mode="after")
    def _check_fields(self) -> "NonSpeechClips":
        if self.per_utterance == 0.0:
            self.refuse_unread(["duration_s", "files"], "per_utterance is 0")
        check_order("duration_s", self.duration_s)
        return self


class Derive(Section):
    """Clips that are made of the utterances of train and dev. They refer to the stored audio, which is not copied."""

    crops: Crops = Crops()
    """Short clips."""
    stitched: Stitched = Stitched()
    """Long clips."""
    non_speech: NonSpeechClips = NonSpeechClips()
    """Clips without speech."""
    dev: bool = True
    """Also make short, long and silent clips of dev: training measures the student on each kind."""
