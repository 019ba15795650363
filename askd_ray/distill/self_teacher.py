"""The student as its own teacher: a copy of it from before, or what it said an epoch ago.

None of them holds anything while its weight is 0, and what they hold is in the checkpoint.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

from askd_ray.config.objective import SelfTeacherConfig as Settings
from askd_ray.distill.previous_epoch import PreviousEpoch
from askd_ray.distill.references import Dense, Reference
from askd_ray.distill.schedules import Progress
from askd_ray.distill.tensors import TensorBatch
from askd_ray.models.windows import WindowedWhisper

Tensors = dict[str, torch.Tensor]
Facts = dict[str, Any]
StudentAt = Callable[[int], WindowedWhisper]
"""Gives a student of the layers that it has after so many shrinkings (models/student.py)."""


class SelfTeacher(Protocol):
    """What the loop asks of a self-teacher."""

    def before_step(self, student: WindowedWhisper, progress: Progress) -> None:
        """Follow the student: called before each step, with the student as it is then."""
        ...

    def reference(self, batch: TensorBatch) -> Reference | None:
        """Return its distributions for a batch's target tokens, or None while it has none: its weight is then 0."""
        ...

    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """Take note of what the student says: log-probabilities ``(n, n_vocab)`` at the target tokens ``rows``."""
        ...

    def after_evaluation(self, student: WindowedWhisper, better: bool) -> None:
        """Take note of dev: ``better`` when the student has the best WER so far."""
        ...

    def state(self) -> tuple[Tensors, Facts]:
        """Return what a checkpoint keeps: tensors, and facts that are JSON. All ranks call it together."""
        ...

    def restore(self, tensors: Tensors, facts: Facts, student_at: StudentAt) -> None:
        """Put back what :meth:`state` gave."""
        ...


def self_teacher(settings: Settings, load_best: Callable[[], WindowedWhisper | None]) -> SelfTeacher:
    """Return the self-teacher of a recipe; ``load_best`` gives the student with the best dev WER, None before one."""
    if settings.kind == "previous_epoch":
        return PreviousEpoch(settings)
    if settings.kind == "best":
        return Best(settings, load_best)
    return Ema(settings) if settings.kind == "ema" else Snapshot(settings)


class _Copy:
    """A frozen copy of the student; the kinds differ in when it is taken and how it follows."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.model: WindowedWhisper | None = None
        self.facts: Facts = {}

    def take(self, student: WindowedWhisper) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    def is_due(self, progress: Progress) -> bool:
        wanted = self.settings.kind != "none" and self.settings.weight > 0.0
        return wanted and progress.u >= self.settings.switch

    @torch.no_grad()
    def reference(self, batch: TensorBatch) -> Reference | None:
        if self.model is None:
            return None
        decoded = self.model(batch.log_mel, batch.decoder_ids)
        return Dense(decoded.hidden[batch.valid], self.model.projection)

    def observe(self, batch: TensorBatch, rows: slice, log_q: torch.Tensor) -> None:
        """A copy learns nothing from single batches."""

    def after_evaluation(self, student: WindowedWhisper, better: bool) -> None:
        """Dev matters to :class:`Best` only."""

    def state(self) -> tuple[Tensors, Facts]:
        if self.model is None:
            return {}, self.facts
        return dict(self.model.state_dict()), {**self.facts, "shrunk": self.model.shrunk}

    def restore(self, tensors: Tensors, facts: Facts, student_at: StudentAt) -> None:
        self.facts = dict(facts)
        if tensors:
            self.take(student_at(self.facts.pop("shrunk")))
            assert self.model is not None
            self.model.load_state_dict(tensors, strict=True)


class Snapshot(_Copy):
    """The student at the switch, and anew after every ``refresh`` of progress."""

    def before_step(self, student: WindowedWhisper, progress: Progress) -> None:
        """Take a snapshot if one is due."""
        if not self.is_due(progress):
            return
        refresh = self.settings.refresh
        number = math.floor((progress.u - self.settings.switch) / refresh + 1e-9) if refresh else 0
        if number > self.facts.get("taken", -1):
            self.take(student)
            self.facts = {"taken": number}


class Ema(_Copy):
    """The exponential moving average of the student's weights since the switch.

    It starts anew from a copy when the student has shrunk: the mean over other layers would mean nothing.
    """

    @torch.no_grad()
    def before_step(self, student: WindowedWhisper, progress: Progress) -> None:
        """Move towards the student."""
        if not self.is_due(progress):
            return
        if self.model is None or self.model.shrunk != student.shrunk:
            self.take(student)
            return
        for mine, its in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(its.detach(), 1.0 - self.settings.decay)


class Best(_Copy):
    """The student with the best dev WER so far; there is none before the first evaluation."""

    def __init__(self, settings: Settings, load_best: Callable[[], WindowedWhisper | None]):
        super().__init__(settings)
        self._load_best = load_best
        self._due = False

    def before_step(self, student: WindowedWhisper, progress: Progress) -> None:
        """At the switch, fetch the best student of the time before it."""
        if self.is_due(progress) and not self._due:
            self._due = True
            best = self._load_best() if self.model is None else None
            if best is not None:
                self.take(best)

    def after_evaluation(self, student: WindowedWhisper, better: bool) -> None:
        """Take the student over if it is the best one so far."""
        if self._due and better:
            self.take(student)
