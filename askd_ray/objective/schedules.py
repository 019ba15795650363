"""The weights of a step, the temperature and the gap over a run; the shapes are in :mod:`askd_ray.config.schedules`."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from askd_ray.config.objective import InstanceWeights, Objective
from askd_ray.config.schedules import temperature_at, weight_at
from askd_ray.config.self_teacher import SelfTeacherConfig
from askd_ray.errors import AskdError


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


def adakd_k(settings: InstanceWeights, u: float) -> float:
    """Return AdaKD's ``k``. It goes linearly from ``k_start`` to ``k_end``: easy utterances first, hard ones later."""
    return settings.k_start + (settings.k_end - settings.k_start) * u if settings.kind == "adakd" else 0.0


def weights_at(objective: Objective, progress: Progress, gap: float = 1.0) -> Weights:
    """Return the weights, the temperature and ``k`` at a point of the run."""
    return Weights(
        weight_at(objective.teacher_weight, progress.u, gap),
        self_weight(objective.self_teacher, progress),
        temperature_at(objective.temperature, progress.u),
        adakd_k(objective.instance_weights, progress.u),
        weight_at(objective.states_weight, progress.u, gap) if objective.decoder_states.kind != "none" else 0.0,
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
