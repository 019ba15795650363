"""Weights and temperature over a run: pure functions of progress (the schedule ``gap`` also of the losses).

To add a shape, extend :data:`SHAPES`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from askd_ray.config.objective import InstanceWeights, Objective
from askd_ray.config.schedules import SHARPNESS, SharpWeight, StatesWeight, TeacherWeight, Temperature
from askd_ray.config.self_teacher import SelfTeacherConfig
from askd_ray.errors import AskdError


def _exponential(v: float, rate: float) -> float:
    return (math.exp(-rate * v) - math.exp(-rate)) / (1.0 - math.exp(-rate))


def _sigmoid(v: float, steepness: float) -> float:
    # the logistic function, as tanh to avoid overflow, scaled to exactly 1 and 0 at the ends
    return 0.5 - 0.5 * math.tanh(steepness * (v - 0.5) / 2.0) / math.tanh(steepness / 4.0)


SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda v, _: 1.0 - v,
    "cosine": lambda v, _: 0.5 * (1.0 + math.cos(math.pi * v)),
    "exponential": _exponential,
    "polynomial": lambda v, power: (1.0 - v) ** power,
    "step": lambda v, n: max(0.0, 1.0 - math.floor(v * n + 1e-9) / n),
    "sigmoid": _sigmoid,
}
"""Each falls from 1 at v = 0 to 0 at v = 1; the second argument is its sharpness."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run: the share ``u`` of completed steps, and the epoch (from 0) of ``n_epochs``."""

    u: float
    epoch: int
    n_epochs: int

    @classmethod
    def at(cls, u: float, epochs: float) -> "Progress":
        """Return the progress at ``u`` of a run of ``epochs`` epochs of equal length."""
        n_epochs = math.ceil(epochs)
        return cls(u, min(int(u * epochs), n_epochs - 1), n_epochs)


@dataclass(frozen=True)
class Weights:
    """The scheduled values of a step.

    ``teacher_weight`` is a, ``self_weight`` is b, ``k`` is AdaKD's k, ``states_weight`` is s.
    """

    teacher_weight: float
    self_weight: float
    temperature: float = 1.0
    k: float = 0.0
    states_weight: float = 0.0


@dataclass
class Gap:
    """The gap between student and teacher: ``clip((l_S - l_T) / (l_S0 - l_T), 0, 1)``; it never rises.

    l_S and l_T are running means of the student's and the teacher's cross-entropy on the same tokens. l_S0 is l_S after
    the first :attr:`FIRST_STEPS` steps; until then the gap is 1, because single batches are too noisy.
    """

    student: float = 0.0
    teacher: float = 0.0
    first: float = 0.0
    steps: int = 0
    value: float = 1.0

    DECAY = 0.98
    FIRST_STEPS = 20

    def update(self, student: float, teacher: float) -> None:
        """Update with the mean losses of a step over all ranks, in nats a token."""
        self.steps += 1
        share = max(1.0 - self.DECAY, 1.0 / self.steps)  # a plain mean at first
        self.student += share * (student - self.student)
        self.teacher += share * (teacher - self.teacher)
        if self.steps <= self.FIRST_STEPS:
            self.first = self.student
            return
        difference, first_difference = self.student - self.teacher, self.first - self.teacher
        gap = min(max(difference / first_difference, 0.0), 1.0) if first_difference > 0.0 else 0.0
        self.value = min(self.value, gap)

    def state(self) -> dict[str, Any]:
        """Return the fields, as arguments of :class:`Gap`, for a checkpoint."""
        return asdict(self)


def teacher_weight(settings: TeacherWeight | StatesWeight, u: float, gap: float = 1.0) -> float:
    """Return ``a`` or ``s`` at progress ``u``: from ``start`` to ``end``, reached at ``until``.

    ``gap`` is :attr:`Gap.value`.
    """
    if settings.schedule == "constant":
        return settings.start
    if settings.schedule == "gap":
        shape = gap
    else:
        sharpness = settings.sharpness or SHARPNESS[settings.schedule] if isinstance(settings, SharpWeight) else 0.0
        shape = SHAPES[settings.schedule](min(u / settings.until, 1.0), sharpness)
    return settings.end + (settings.start - settings.end) * shape


def self_weight(settings: SelfTeacherConfig, progress: Progress) -> float:
    """Return ``b``: 0 before the switch, then ``weight``, or rising to it until the end of the run.

    The labels of ``previous_epoch`` change only with the epoch, so its weight does too: ``weight * (epoch + 1) /
    epochs`` when it rises linearly from the start (PS-KD, arXiv 2006.12000, equation 7).
    """
    if settings.kind == "none" or progress.u < settings.switch:
        return 0.0
    u = (progress.epoch + 1) / progress.n_epochs if settings.kind == "previous_epoch" else progress.u
    v = (u - settings.switch) / (1.0 - settings.switch) if settings.switch < 1.0 else 1.0
    rising = {"constant": 1.0, "linear": v, "cosine": 0.5 * (1.0 - math.cos(math.pi * v))}
    return settings.weight * rising[settings.schedule]


def temperature(settings: Temperature, u: float) -> float:
    """Return ``T`` at progress ``u``."""
    if settings.schedule == "constant":
        return settings.start
    return settings.end + (settings.start - settings.end) * SHAPES[settings.schedule](u, 0.0)


def adakd_k(settings: InstanceWeights, u: float) -> float:
    """Return AdaKD's ``k``. It goes linearly from ``k_start`` to ``k_end``: easy utterances first, hard ones later."""
    return settings.k_start + (settings.k_end - settings.k_start) * u if settings.kind == "adakd" else 0.0


def weights_at(objective: Objective, progress: Progress, gap: float = 1.0) -> Weights:
    """Return the weights, the temperature and ``k`` at a point of the run."""
    return Weights(
        teacher_weight(objective.teacher_weight, progress.u, gap),
        self_weight(objective.self_teacher, progress),
        temperature(objective.temperature, progress.u),
        adakd_k(objective.instance_weights, progress.u),
        teacher_weight(objective.states_weight, progress.u, gap) if objective.decoder_states.kind != "none" else 0.0,
    )


def check(objective: Objective, epochs: float) -> None:
    """Check that the weight of the cross-entropy is never negative.

    Raises :class:`AskdError` with the progress at which the other weights add up to more than 1.
    """
    if isinstance(objective.ce_weight, float):
        return
    for step in range(201):
        weights = weights_at(objective, Progress.at(step / 200, epochs))
        if weights.teacher_weight + weights.self_weight > 1.0 + 1e-9:
            raise AskdError(
                f"objective: teacher weight {weights.teacher_weight:.2f} + self weight {weights.self_weight:.2f} "
                f"exceed 1 at progress {step / 200:.2f}: lower objective.teacher_weight or "
                "objective.self_teacher.weight, or move objective.self_teacher.switch"
            )
