"""The recipe: every setting of a run, typed, frozen, unknown keys refused.

A recipe is read by :mod:`askd_ray.config.load`; every stage takes one. Fields carry their unit in their name.
"""

import itertools
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from askd_ray.config.augment import Augment
from askd_ray.config.data import Data
from askd_ray.config.evaluate import Evaluate, Name
from askd_ray.config.objective import Objective
from askd_ray.config.section import Count, Positive, Section, Share
from askd_ray.config.study import Study
from askd_ray.config.targets import Targets
from askd_ray.config.tracking import Tracking
from askd_ray.config.train import Train
from askd_ray.config.tune import Tune
from askd_ray.files import check_place

Layers = tuple[int | tuple[int, ...], ...]
"""Layers that are kept, by index, and lists of neighbours that become one layer."""


class Teacher(Section):
    """The model that is learnt from.

    Its ``top_k`` log-probabilities a token are computed once, when `askd label` runs. With ``online`` it runs beside
    the student instead, at every step in which it has a weight, and gives its whole distribution. Where
    `train.use_gpu` is set, a copy of it that labels takes ``gpus_per_copy`` of a GPU: with 0.25 four share one.
    """

    model: str = "wheel:tiny.en"
    online: bool = False
    top_k: Annotated[int, Field(ge=1, le=128)] = 32
    batch_size: Count = 8
    gpus_per_copy: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "Teacher":
        if self.online:
            self.refuse_unread(["top_k"], "an online teacher gives its whole distribution")
        return self


class Shrinking(Section):
    """The layers that the student goes on with from progress ``at`` on, as indices into the student as it was built."""

    at: Annotated[float, Field(gt=0.0, lt=1.0)]
    encoder_layers: Layers | None = None
    decoder_layers: Layers | None = None

    @model_validator(mode="after")
    def _something_goes(self) -> "Shrinking":
        if self.encoder_layers is None and self.decoder_layers is None:
            raise ValueError(f"the shrinking at {self.at:g} names neither encoder_layers nor decoder_layers")
        return self


class Student(Section):
    """The student: the layers of ``init`` (default: of the teacher) that it keeps; null keeps all.

    An entry is the index of a layer, or a list of neighbours that become one layer: ``[0, [1, 2], 3]`` makes three of
    four. ``shrink`` takes more away as the run goes by.
    """

    init: str | None = None
    encoder_layers: Layers | None = None
    decoder_layers: Layers | None = None
    shrink: tuple[Shrinking, ...] = ()

    @model_validator(mode="after")
    def _shrinks_in_order(self) -> "Student":
        moments = [step.at for step in self.shrink]
        if any(later <= earlier for earlier, later in itertools.pairwise(moments)):
            raise ValueError(
                f"shrink is at {', '.join(f'{at:g}' for at in moments)}: each must come after the one before"
            )
        return self


class Window(Section):
    """What the student's encoder sees: the clip and some silence, not 30 s.

    In training the silence is drawn from ``train_silence_s``; ``padded_share`` of the utterances get the whole 30 s,
    so that engines that always pad can run the student too. ``silence_s`` is used for decoding.
    """

    train_silence_s: tuple[Positive, Positive] = (0.1, 1.0)
    silence_s: Positive = 0.3
    padded_share: Share = 0.01

    @model_validator(mode="after")
    def _low_before_high(self) -> "Window":
        if self.train_silence_s[0] > self.train_silence_s[1]:
            raise ValueError("train_silence_s is [least, most]: the first must not exceed the second")
        return self


class Recipe(Section):
    """A whole run. ``data_run`` names the run whose shards and labels it uses: many runs can share one labelling.

    Shards and labels lie under ``data_root``, a folder or a URI; by default under ``runs_root``, as all else does.
    """

    name: Name = "run"
    data_run: Name | None = None
    seed: int = 0
    runs_root: str = "runs"
    data_root: str | None = None
    data: Data = Field(default_factory=Data)
    teacher: Teacher = Teacher()
    targets: Targets = Field(default_factory=Targets)
    student: Student = Student()
    window: Window = Window()
    augment: Augment = Field(default_factory=Augment)
    objective: Objective = Field(default_factory=Objective)
    train: Train = Field(default_factory=Train)
    tracking: Tracking = Field(default_factory=Tracking)
    tune: Tune = Field(default_factory=Tune)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    study: Study | None = None

    @field_validator("runs_root")
    @classmethod
    def _on_a_disk(cls, given: str) -> str:
        return check_place(given)

    @field_validator("data_root")
    @classmethod
    def _can_be_written_to(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given, "s3", "gs")

    @model_validator(mode="after")
    def _a_sharded_student_stays_one(self) -> "Recipe":
        if self.train.parallel == "ddp":
            return self
        if self.student.shrink:
            raise ValueError(
                "train.parallel fsdp shards the student once: student.shrink cannot take layers away later"
            )
        kind = self.objective.self_teacher.kind
        if self.objective.has_self_teacher and kind != "previous_epoch":
            raise ValueError(
                f"objective.self_teacher {kind} copies the student, which train.parallel fsdp shards: take "
                "previous_epoch or none"
            )
        return self

    @model_validator(mode="after")
    def _the_search_sees_no_test_set(self) -> "Recipe":
        tested = {name for test in self.evaluate.sets for name in (test.domain, test.name)}
        if seen := sorted(tested & set(self.tune.ood_domains)):
            raise ValueError(
                f"tune.ood_domains and evaluate.sets both name {', '.join(seen)}: what is chosen by cannot be tested on"
            )
        if not self.train.use_gpu:
            self.tune.refuse_unread(["gpus_per_trial"], "train.use_gpu is false")
        return self

    @model_validator(mode="after")
    def _the_teacher_can_give_what_is_asked(self) -> "Recipe":
        wants = self.objective
        if not self.teacher.online and wants.has_teacher and wants.temperature.schedule != "constant":
            raise ValueError(
                "objective.temperature changes over the run: cached soft labels have one temperature baked in; "
                "make it constant, or set teacher.online=true"
            )
        if self.teacher.online and wants.instance_weights.kind == "adakd":
            raise ValueError(
                "objective.instance_weights adakd needs the teacher's loss on every utterance beforehand: cached soft "
                "labels have it, teacher.online=true does not"
            )
        if self.teacher.online and not wants.has_teacher and wants.hidden_states.kind == "none":
            raise ValueError(f"teacher.online = True would be ignored: preset {wants.preset} gives it no weight")
        if not self.teacher.online and wants.hidden_states.kind != "none":
            raise ValueError("objective.hidden_states needs the teacher beside the student: teacher.online=true")
        if self.augment.changes_speed and wants.hidden_states.kind != "none":
            raise ValueError(
                "objective.hidden_states compares the encoders moment by moment: augment.speed must be [1.0]"
            )
        if self.augment.changes_speed and self.targets.timestamps:
            raise ValueError("targets.timestamps are those of the clean clip: augment.speed must be [1.0]")
        taps = (
            [student_layer for student_layer, _ in wants.hidden_states.layers]
            if wants.hidden_states.kind != "none"
            else []
        )
        if any(step.encoder_layers is not None for step in self.student.shrink) and set(taps) - {-1}:
            raise ValueError(
                f"objective.hidden_states.layers taps the student's encoder layers {taps}, and student.shrink changes "
                "what they are: only -1 (after the last) stays what it is"
            )
        return self
