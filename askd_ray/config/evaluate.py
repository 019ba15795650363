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
    """A named source of speech for scoring that is not in the training data. ``in_domain``: its domain is."""

    name: Name
    in_domain: bool = False


class Evaluate(Section):
    """The comparison of the student with its teacher, and with further ``models``, by name.

    All are scored on the run's ``split`` (null: on none) and on ``sets``. Rows of several domains are split into one
    set per domain. A model is a bundle, a transformers or CTranslate2 folder, a hub id, ``wheel:NAME``, or the URL of
    an OpenAI-compatible server with the model's name: ``http://HOST/v1#NAME``.

    ``conditions`` are scored on ``condition_clips`` clips of each set, spread over their durations; ``noise_files`` and
    ``room_files`` are patterns of sound files for them (null: synthetic sounds). ``non_speech`` counts the words that
    are transcribed from clips without speech; ``speculative`` runs the student as draft model of its teacher.

    Speed is measured on ``speed_clips`` clips spread over all durations, also at ``batch_sizes``, with ``threads``
    threads (0: the best number for each model, and all cores for stock). With ``stock`` the speed-up is relative to
    the teacher in stock faster-whisper; without, to the teacher in our engine. The speed-up of clips under ``short_s``
    is reported apart.
    """

    split: Literal["dev", "test"] | None = "test"
    sets: tuple[SpeechSet, ...] = ()
    models: dict[Name, str] = Field(default_factory=dict[str, str])
    normalizer: Normalizer = "whisper"
    """``whisper``: Whisper's English normaliser for English and its basic one for other languages."""
    conditions: tuple[ConditionText, ...] = ()
    condition_clips: Count = 100
    noise_files: str | None = None
    room_files: str | None = None
    non_speech: bool = False
    speculative: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    repeats: Count = 1
    short_s: Positive = 5.0
    stock: bool = True
    speed_clips: Count = 48
    batch_sizes: tuple[Count, ...] = ()

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
