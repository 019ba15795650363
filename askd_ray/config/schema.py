"""The recipe: all settings of a run, typed and frozen; unknown keys are refused.

:mod:`askd_ray.config.load` reads a recipe; every stage takes one. Field names end with their unit.
"""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from askd_ray.config.augment import Augment
from askd_ray.config.data import Data
from askd_ray.config.evaluate import Evaluate, Name
from askd_ray.config.objective import Objective
from askd_ray.config.readers import check_reader
from askd_ray.config.section import Count, Positive, Section, Share, check_order
from askd_ray.config.student import Student
from askd_ray.config.study import Study
from askd_ray.config.targets import Targets
from askd_ray.config.tracking import Tracking
from askd_ray.config.train import Train
from askd_ray.config.tune import Tune
from askd_ray.files import check_place, scheme_of


class Teacher(Section):
    """The teacher model.

    `askd label` computes its soft labels once. With ``online`` it runs beside the student instead, at every step in
    which its weight is above 0, and gives its whole distribution.
    """

    model: str = "wheel:tiny.en"
    """A hub id, a transformers folder, or ``wheel:NAME``."""
    online: bool = False
    """Run the teacher beside the student."""
    top_k: Annotated[int, Field(ge=1, le=128)] = 32
    """The number of log-probabilities to keep for each token, up to 128, besides the rest."""
    batch_size: Count = 8
    """The number of utterances that a copy labels at once."""
    gpus_per_copy: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The part of a GPU that each copy takes for labelling, with ``train.workers.gpu``; 0.25: four copies share one."""

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Teacher":
        if self.online:
            self.refuse_unread(["top_k"], "an online teacher gives its whole distribution")
        return self


WindowSeconds = Annotated[float, Field(ge=0.0, le=30.0)]


class Window(Section):
    """The trimmed window of the student's encoder: the clip and some silence instead of 30 s."""

    train_silence_s: tuple[Positive, Positive] = (0.2, 2.5)
    """The silence after a clip in training, in seconds, drawn from [min, max]."""
    train_min_s: WindowSeconds = 1.0
    """The minimal window in training, in seconds."""
    silence_s: Positive = 0.3
    """The silence after a clip in decoding, in seconds."""
    min_s: WindowSeconds = 1.0
    """The minimal window in decoding, in seconds."""
    choose_on_dev: bool = True
    """Whether `askd export` chooses the bundle's silence_s and min_s on dev clips; false keeps these, with which dev
    is decoded during the training."""
    padded_share: Share = 0.01
    """The share of the train utterances that get the whole 30 s, so that engines that always pad can run the
    student."""

    @model_validator(mode="after")
    def _check_order(self) -> "Window":
        check_order("train_silence_s", self.train_silence_s)
        return self


class Recipe(Section):
    """All settings of a run."""

    name: Name = "run"
    """The name of the run; its folder is ``runs_root/name``."""
    data_run: Name | None = None
    """The run whose shards and labels it uses: runs can share them. null: this run."""
    seed: int = 0
    """The seed of everything random."""
    runs_root: str = "runs"
    """The folder, or s3:// or gs:// URI, of all runs."""
    data_root: str | None = None
    """The folder, or s3:// or gs:// URI, of shards and labels; null: ``runs_root``."""
    data: Data = Field(default_factory=Data)
    """The sources, and how they become shards."""
    teacher: Teacher = Teacher()
    """The teacher model."""
    targets: Targets = Field(default_factory=Targets)
    """The target texts."""
    student: Student = Field(default_factory=Student)
    """The student and its layers."""
    window: Window = Window()
    """The trimmed window of the student's encoder."""
    augment: Augment = Field(default_factory=Augment)
    """The changes to the student's input."""
    objective: Objective = Field(default_factory=Objective)
    """The loss."""
    train: Train = Field(default_factory=Train)
    """The training."""
    tracking: Tracking = Field(default_factory=Tracking)
    """MLflow."""
    tune: Tune = Field(default_factory=Tune)
    """The search of `askd tune`."""
    evaluate: Evaluate = Field(default_factory=Evaluate)
    """The evaluation."""
    study: Study | None = None
    """The comparison of objectives of `askd study`; null: none."""

    @property
    def has_pseudo_labels(self) -> bool:
        """Whether the teacher transcribes any clip."""
        return self.targets.kind == "pseudo" or self.data.derive is not None

    @field_validator("runs_root")
    @classmethod
    def _check_runs_root(cls, given: str) -> str:
        return check_place(given, "s3", "gs")

    @field_validator("data_root")
    @classmethod
    def _check_data_root(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given, "s3", "gs")

    @model_validator(mode="after")
    def _check_fsdp(self) -> "Recipe":
        if self.train.workers.parallel == "ddp":
            return self
        if self.student.shrink:
            raise ValueError(
                "train.workers.parallel fsdp shards the student at the start: student.shrink cannot remove layers later"
            )
        kind = self.objective.self_teacher.kind
        if self.objective.has_self_teacher and kind != "previous_epoch":
            raise ValueError(
                f"objective.self_teacher {kind} copies the student, which train.workers.parallel fsdp shards: use "
                "previous_epoch or none"
            )
        return self

    @model_validator(mode="after")
    def _check_previous_epoch(self) -> "Recipe":
        objective, weights = self.objective, self.train.batching.domain_weights
        if not objective.has_self_teacher or objective.self_teacher.kind != "previous_epoch":
            return self
        if scheme_of(self.runs_root):
            raise ValueError(
                "objective.self_teacher previous_epoch keeps files that all workers read: runs_root must be a folder"
            )
        if rare := sorted(name for name, weight in weights.items() if 0.0 < weight < 1.0):
            raise ValueError(
                f"train.batching.domain_weights of {', '.join(rare)}: below 1 they leave utterances out of an epoch, "
                "and objective.self_teacher previous_epoch then has no labels for them in the next"
            )
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> "Recipe":
        if not self.has_pseudo_labels:
            pseudo_only = [name for name in Targets.model_fields if name not in ("kind", "prompt", "states")]
            self.targets.refuse_unread(pseudo_only, "the teacher transcribes nothing (targets.kind, data.derive)")
        return self

    @model_validator(mode="after")
    def _check_seeds(self) -> "Recipe":
        if self.study is not None:
            self.train.refuse_unread(["averaged_seeds"], "a study compares single trainings of study.seeds")
        return self

    @model_validator(mode="after")
    def _check_search(self) -> "Recipe":
        tested = {name for test in self.evaluate.sets for name in (test.domain, test.name)}
        if shared_names := sorted(tested & set(self.tune.ood_domains)):
            raise ValueError(
                f"tune.ood_domains and evaluate.sets both name {', '.join(shared_names)}: a selection set cannot be a "
                "test set"
            )
        if not self.train.workers.gpu:
            self.tune.refuse_unread(["gpus_per_trial"], "train.workers.gpu is false")
        if self.tune.trial_workers > self.train.micro_batches_per_step:
            raise ValueError(
                f"tune.trial_workers = {self.tune.trial_workers} exceeds the {self.train.micro_batches_per_step} "
                "micro-batches of a step (train.batching.micro_batches): each worker needs at least one"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> "Recipe":
        objective = self.objective
        if not self.teacher.online and objective.has_teacher and objective.temperature.schedule != "constant":
            raise ValueError(
                "objective.temperature changes over the run: cached soft labels are computed with one temperature; "
                "make it constant, or set teacher.online=true"
            )
        if self.teacher.online and objective.instance_weights.kind == "adakd":
            raise ValueError(
                "objective.instance_weights adakd needs the teacher's loss on every utterance before the training: "
                "cached soft labels have it, teacher.online=true does not"
            )
        reads_states = objective.hidden_states.kind != "none" or objective.decoder_states.kind != "none"
        if self.teacher.online and not objective.has_teacher and not reads_states:
            raise ValueError(f"teacher.online = True would be ignored: preset {objective.preset} gives it no weight")
        if not self.teacher.online and objective.hidden_states.kind != "none":
            raise ValueError("objective.hidden_states needs the teacher beside the student: teacher.online=true")
        if self.augment.changes_speed and objective.hidden_states.kind != "none":
            raise ValueError(
                "objective.hidden_states compares the encoders frame by frame: augment.speed must be [1.0]"
            )
        if self.augment.changes_speed and self.targets.timestamps:
            raise ValueError("targets.timestamps are times in the clean clip: augment.speed must be [1.0]")
        taps = (
            [student_layer for student_layer, _ in objective.hidden_states.layers]
            if objective.hidden_states.kind != "none"
            else []
        )
        if any(step.encoder_layers is not None for step in self.student.shrink) and set(taps) - {-1}:
            raise ValueError(
                f"objective.hidden_states.layers names the student's encoder layers {taps}, and student.shrink changes "
                "their numbers: only -1 (after the last) keeps its meaning"
            )
        return self

    @model_validator(mode="after")
    def _check_reader(self) -> "Recipe":
        optimizer = self.train.optimizer
        check_reader(self.student, self.objective, self.targets, optimizer, self.teacher.online)
        return self

    @model_validator(mode="after")
    def _check_llm(self) -> "Recipe":
        if self.student.reader != "llm":
            return self
        reader = "student.reader = llm"
        if self.data.derive is not None:
            raise ValueError(
                f"{reader}: its LLM reads references, which derived clips do not have: set data.derive=null"
            )
        if self.train.workers.parallel != "ddp":
            raise ValueError(f"{reader}: the LLM is whole on each worker: set train.workers.parallel=ddp")
        others = ("models", "split", "sets", "normalizer")
        self.evaluate.refuse_unread([n for n in Evaluate.model_fields if n not in others], f"{reader} has no bundle")
        if self.evaluate.models:
            raise ValueError(f"{reader}: evaluate.models are compared with bundles, and no bundle holds an LLM")
        if self.study is not None:
            raise ValueError(f"{reader}: a study compares bundles, and no bundle holds an LLM: set study=null")
        return self

    @model_validator(mode="after")
    def _check_decoder_states(self) -> "Recipe":
        kept, matched = self.targets.states, self.objective.decoder_states
        if self.teacher.online and kept != "none":
            raise ValueError(
                f"targets.states = {kept} would be ignored: an online teacher gives its states itself: set "
                "targets.states=none"
            )
        if matched.kind == "none":
            return self
        if not self.teacher.online and kept == "none":
            raise ValueError(
                "objective.decoder_states needs the teacher's decoder states: set targets.states=all, or "
                "teacher.online=true"
            )
        if not self.teacher.online and kept == "last" and matched.layers != "last":
            raise ValueError(
                "objective.decoder_states.layers reads all layers, and targets.states = last keeps only the last: set "
                "targets.states=all, or layers=last"
            )
        shrinks = any(step.decoder_layers is not None for step in self.student.shrink)
        pairs = matched.layers if isinstance(matched.layers, tuple) else ()
        if shrinks and any(student_layer != -1 for student_layer, _ in pairs):
            raise ValueError(
                "objective.decoder_states.layers names student layers, and student.shrink changes their numbers: "
                "only -1 (the last) keeps its meaning; all and last follow the student"
            )
        return self
