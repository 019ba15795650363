"""The recipe's ``objective.self_teacher``: one section for each kind of self-teacher (docs/objective.md)."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from askd_ray.config.section import Section, Share

Kind = TypeVar("Kind", bound=str)


class WeightedSelfTeacher(Section, Generic[Kind]):
    """The settings of all self-teachers: the weight ``b``, and when it begins."""

    kind: Kind
    """Which self-teacher."""
    weight: Share = 0.2
    """Its weight b in the loss, from 0 to 1."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """From ``switch`` on the weight is constant, or it rises to ``weight`` until the end of the run."""
    switch: Share = 0.5
    """The progress of the run, from 0 to 1, at which the weight begins."""

    @model_validator(mode="after")
    def _check_weight(self) -> "WeightedSelfTeacher[Kind]":
        if self.weight == 0.0:
            others = [name for name in type(self).model_fields if name not in ("kind", "weight")]
            self.refuse_unread(others, "the weight is 0")
        return self


class NoSelfTeacher(Section):
    """No self-teacher."""

    kind: Literal["none"] = "none"
    """Which self-teacher."""


class SnapshotConfig(WeightedSelfTeacher[Literal["snapshot"]]):
    """A copy of the student, taken at ``switch``."""

    kind: Literal["snapshot"] = "snapshot"
    """Which self-teacher."""
    refresh: Share = 0.0
    """The copy is renewed after each ``refresh`` of progress; 0 never renews it."""


class EmaConfig(WeightedSelfTeacher[Literal["ema"]]):
    """The moving average of the student's weights since ``switch``."""

    kind: Literal["ema"] = "ema"
    """Which self-teacher."""
    decay: Share = 0.999
    """The part of the average that a step keeps."""


class PreviousEpochConfig(WeightedSelfTeacher[Literal["previous_epoch"]]):
    """The student's outputs one epoch ago (PS-KD, arXiv 2006.12000)."""

    kind: Literal["previous_epoch"] = "previous_epoch"
    """Which self-teacher."""
    top_k: Annotated[int, Field(ge=1, le=128)] = 32
    """The number of log-probabilities to keep for each token, besides the rest."""


class BestConfig(WeightedSelfTeacher[Literal["best"]]):
    """A copy of the student with the best dev WER so far."""

    kind: Literal["best"] = "best"
    """Which self-teacher."""


SelfTeacherConfig = Annotated[
    NoSelfTeacher | SnapshotConfig | EmaConfig | PreviousEpochConfig | BestConfig, Field(discriminator="kind")
]
"""The self-teacher and its weight ``b``."""
