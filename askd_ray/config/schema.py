"""The recipe: every setting of a run, typed, frozen, unknown keys refused.

A recipe is read by :mod:`askd_ray.config.load`; every stage takes one. Fields carry their unit in their name.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all parts of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where utterances come from.

    ``path`` is a manifest file or its folder, a Parquet file or folder, a WebDataset tar or folder of tars, or
    ``cache:NAME`` for speech that ``askd fetch speech NAME`` brought. ``domain``, ``language`` and ``licence`` fill
    in what the rows themselves do not say.
    """

    path: str
    kind: Literal["manifest", "parquet", "webdataset"] = "manifest"
    domain: str = "default"
    language: str = "en"
    licence: str = "unknown"


class Data(Section):
    """How sources become shards. Splits are a hash of the speaker (or of the text where no speaker is named)."""

    sources: tuple[Source, ...] = ()
    dev_share: Share = 0.1
    test_share: Share = 0.1
    utterances_per_shard: Count = 64
    max_duration_s: Annotated[float, Field(gt=0.0, le=30.0)] = 30.0
    max_quarantine_share: Share = 0.2

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "Data":
        if self.dev_share + self.test_share >= 1.0:
            raise ValueError("dev_share + test_share must stay below 1: nothing would be left to train on")
        return self


class Teacher(Section):
    """The model that labels. ``temperature`` is baked into the soft labels when they are written."""

    model: str = "wheel:tiny.en"
    top_k: Annotated[int, Field(ge=1, le=128)] = 32
    temperature: Positive = 1.0
    batch_size: Count = 8


class Student(Section):
    """The student: the layers of ``init`` (default: of the teacher) that it keeps, by index; null keeps all."""

    init: str | None = None
    encoder_layers: tuple[int, ...] | None = None
    decoder_layers: tuple[int, ...] | None = None
    freeze_encoder: bool = False


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


class SpecAugment(Section):
    """Masks on the log-mel (arXiv 1904.08779): how many, and how wide at most. 0 masks switch it off."""

    freq_masks: Annotated[int, Field(ge=0)] = 2
    freq_width: Annotated[int, Field(ge=0, le=80)] = 15
    time_masks: Annotated[int, Field(ge=0)] = 2
    time_share: Share = 0.06


class TeacherWeight(Section):
    """The weight ``a`` of the teacher: from ``start`` to ``end`` while progress goes from 0 to ``until``."""

    schedule: Literal["constant", "linear", "cosine", "exponential"] = "linear"
    start: Share = 0.8
    end: Share = 0.16
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class SelfTeacher(Section):
    """The weight ``b`` of the student's own knowledge: ``weight`` from progress ``switch`` on.

    At ``switch`` the student is frozen as its own teacher; ``refresh`` > 0 freezes it anew after each such share of the
    run.
    """

    kind: Literal["none", "snapshot"] = "snapshot"
    weight: Share = 0.2
    switch: Share = 0.5
    refresh: Share = 0.0


class Objective(Section):
    """``L = a * KD + b * self-KD + (1 - a - b) * CE``; the temperature is the teacher's."""

    teacher_weight: TeacherWeight = TeacherWeight()
    self_teacher: SelfTeacher = SelfTeacher()


class Train(Section):
    """The loop. Learning rates rise over ``warmup_share`` of the steps and then fall linearly to 0.

    ``epochs`` may be a fraction. Dev is scored ``evals_per_epoch`` times in each epoch that is begun.
    """

    epochs: Positive = 6
    lr: Positive = 5e-5
    encoder_lr: Positive = 2e-5
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_share: Share = 0.1
    clip_norm: Positive = 1.0
    batch_utterances: Count = 8
    batch_audio_s: Positive = 30.0
    shuffle_shards: Count = 8
    evals_per_epoch: Count = 1
    workers: Count = 1
    cpus_per_worker: Positive = 0.5
    use_gpu: bool = False
    max_failures: Annotated[int, Field(ge=0)] = 2


class Tune(Section):
    """The search: how many trials, how long each, and the values that are tried. All trials share the soft labels."""

    trials: Count = 4
    epochs: Positive = 2
    concurrent: Count = 1
    schedules: tuple[Literal["constant", "linear", "cosine", "exponential"], ...] = ("constant", "linear", "cosine")
    start: tuple[Share, Share] = (0.5, 0.9)
    end: tuple[Share, Share] = (0.0, 0.4)
    self_weight: tuple[Share, Share] = (0.0, 0.3)


class Evaluate(Section):
    """The comparison on the held-out split, ``threads`` = 0 taking all cores.

    With ``stock`` the speed-up is against the teacher in faster-whisper as people run it, on ``stock_clips`` clips under
    ``short_s``; without, against the teacher in our engine.
    """

    split: Literal["dev", "test"] = "test"
    threads: Annotated[int, Field(ge=0)] = 0
    repeats: Count = 1
    short_s: Positive = 5.0
    stock: bool = True
    stock_clips: Count = 40


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    seed: int = 0
    runs_root: str = "runs"
    data: Data = Data()
    teacher: Teacher = Teacher()
    student: Student = Student()
    window: Window = Window()
    spec_augment: SpecAugment = SpecAugment()
    objective: Objective = Objective()
    train: Train = Train()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
