"""Self-teachers: the student's teacher is an earlier copy of itself, or its own distributions of the last epoch.

A self-teacher holds no data while its weight is 0. Its data is part of every checkpoint.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from askd_ray.config.self_teacher import BestConfig, EmaConfig, SelfTeacherConfig, SnapshotConfig
from askd_ray.models.student import StudentModel
from askd_ray.objective.previous_epoch import PreviousEpoch
from askd_ray.objective.readers import Reading
from askd_ray.objective.references import Dense, Reference
from askd_ray.objective.schedules import Progress
from askd_ray.objective.tensors import TensorBatch

Tensors = dict[str, torch.Tensor]
Facts = dict[str, Any]
Config = TypeVar("Config", SnapshotConfig, EmaConfig, BestConfig)
StudentBuilder = Callable[[int], StudentModel]
"""Builds the student with the layers that it has after the given number of shrinkings."""


class SelfTeacher(Protocol):
    """The interface of a self-teacher for the training loop."""

    def before_step(self, student: StudentModel, progress: Progress) -> None:
        """Follow the student. The loop calls this before each step."""
        ...

    def references(self, batch: TensorBatch, readings: Sequence[Reading]) -> Sequence[Reference | None]:
        """Return the distributions (and a copy's decoder states) for a batch's target tokens, for each reading.

        None while there are none: the weight is then 0.
        """
        ...

    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """Receive the student's log-probabilities ``(n, n_vocab)`` at the target tokens ``rows``."""
        ...

    def after_evaluation(self, student: StudentModel, better: bool) -> None:
        """Receive the result of a dev evaluation: ``better`` if the student has the best WER so far."""
        ...

    def state(self) -> tuple[Tensors, Facts]:
        """Return the state for a checkpoint: tensors, and facts as JSON values. All ranks call it together."""
        ...

    def restore(self, tensors: Tensors, facts: Facts, student_builder: StudentBuilder) -> None:
        """Restore what :meth:`state` returned."""
        ...

    def after_checkpoint(self) -> None:
        """Delete files that the newest checkpoint does not need. All ranks call it once that checkpoint is complete."""
        ...


def build_self_teacher(
    settings: SelfTeacherConfig, load_best: Callable[[], StudentModel | None], folder: Path | None = None
) -> SelfTeacher:
    """Return the self-teacher of a recipe.

    ``load_best`` loads the student with the best dev WER; it returns None before the first evaluation. ``folder``: the
    place of the files of ``previous_epoch``; the other self-teachers have none.
    """
    match settings.kind:
        case "none":
            return Snapshot(SnapshotConfig(weight=0.0))  # it is never taken
        case "snapshot":
            return Snapshot(settings)
        case "ema":
            return Ema(settings)
        case "previous_epoch":
            assert folder is not None, "previous_epoch needs a folder"
            return PreviousEpoch(settings, folder)
        case "best":
            return Best(settings, load_best)


class _Copy(Generic[Config]):
    """A frozen copy of the student; subclasses decide when to copy and how to follow the student."""

    def __init__(self, settings: Config):
        self.settings = settings
        self.model: StudentModel | None = None
        self.facts: Facts = {}

    def copy_from(self, student: StudentModel) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    def is_due(self, progress: Progress) -> bool:
        return self.settings.weight > 0.0 and progress.u >= self.settings.switch

    @torch.no_grad()
    def references(self, batch: TensorBatch, readings: Sequence[Reading]) -> Sequence[Reference | None]:
        if self.model is None:
            return [None] * len(readings)
        decoded = self.model(batch.log_mel, batch.decoder_ids, batch.window_frames)
        states = batch.states_at_targets(decoded.tapped)
        return [Dense(*reading.rows(self.model, decoded), states) for reading in readings]

    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """Do nothing: a copy does not depend on single batches."""

    def after_evaluation(self, student: StudentModel, better: bool) -> None:
        """Do nothing: only :class:`Best` depends on dev scores."""

    def after_checkpoint(self) -> None:
        """Do nothing: a copy has no files."""

    def state(self) -> tuple[Tensors, Facts]:
        if self.model is None:
            return {}, self.facts
        return dict(self.model.state_dict()), {**self.facts, "shrunk": self.model.shrunk}

    def restore(self, tensors: Tensors, facts: Facts, student_builder: StudentBuilder) -> None:
        self.facts = dict(facts)
        if tensors:
            self.copy_from(student_builder(self.facts.pop("shrunk")))
            assert self.model is not None
            self.model.load_state_dict(tensors, strict=True)


class Snapshot(_Copy[SnapshotConfig]):
    """A copy of the student at the switch, renewed after every ``refresh`` of progress."""

    def before_step(self, student: StudentModel, progress: Progress) -> None:
        """Take a snapshot if it is due."""
        if not self.is_due(progress):
            return
        refresh = self.settings.refresh
        number = math.floor((progress.u - self.settings.switch) / refresh + 1e-9) if refresh else 0
        if number > self.facts.get("taken", -1):
            self.copy_from(student)
            self.facts = {"taken": number}


class Ema(_Copy[EmaConfig]):
    """The exponential moving average of the student's weights since the switch.

    After a shrinking it restarts from a copy, because weights of different layers cannot be averaged.
    """

    def before_step(self, student: StudentModel, progress: Progress) -> None:
        """Move the average towards the student."""
        if not self.is_due(progress):
            return
        if self.model is None or self.model.shrunk != student.shrunk:
            self.copy_from(student)
            return
        # Not AveragedModel: its checkpoint counts the averages and renames the weights.
        average = get_ema_multi_avg_fn(self.settings.decay)
        average(tuple(self.model.parameters()), tuple(student.parameters()), None)


class Best(_Copy[BestConfig]):
    """A copy of the student with the best dev WER so far; there is none before the first evaluation."""

    def __init__(self, settings: BestConfig, load_best: Callable[[], StudentModel | None]):
        super().__init__(settings)
        self._load_best = load_best
        self._due = False

    def before_step(self, student: StudentModel, progress: Progress) -> None:
        """At the switch, load the best student so far."""
        if self.is_due(progress) and not self._due:
            self._due = True
            best = self._load_best() if self.model is None else None
            if best is not None:
                self.copy_from(best.to(next(student.parameters()).device))

    def after_evaluation(self, student: StudentModel, better: bool) -> None:
        """Copy the student if it is the best so far."""
        if self._due and better:
            self.copy_from(student)
