"""The recipe's schedules: how the teacher's weight and the temperature change over a run (docs/objective.md).

The values are pure functions of progress (the schedule ``gap`` also of the losses). To add a shape, extend
:data:`SHAPES`.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from askd_ray.config.section import Positive, Section, Share


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

SHARPNESS = {"exponential": 5.0, "polynomial": 2.0, "step": 4.0, "sigmoid": 10.0}
"""Defaults: rate of the exponential, power of the polynomial, number of steps, steepness of the sigmoid."""

Until = Annotated[float, Field(gt=0.0, le=1.0)]


class ConstantWeight(Section):
    """A constant weight."""

    schedule: Literal["constant"] = "constant"
    """How the weight changes over the run."""
    start: Share = 0.8
    """The weight, from 0 to 1."""


class FallingWeight(Section):
    """A weight that falls with time."""

    schedule: Literal["linear", "cosine"] = "linear"
    """How the weight changes over the run."""
    start: Share = 0.8
    """The weight at the start of the run, from 0 to 1."""
    end: Share = 0.16
    """The weight from ``until`` on, from 0 to 1."""
    until: Until = 1.0
    """The progress of the run, up to 1, at which the weight reaches ``end``."""


class SharpWeight(Section):
    """A weight that falls with time, by a curve whose sharpness can be set."""

    schedule: Literal["exponential", "polynomial", "step", "sigmoid"] = "exponential"
    """How the weight changes over the run."""
    start: Share = 0.8
    """The weight at the start of the run, from 0 to 1."""
    end: Share = 0.16
    """The weight from ``until`` on, from 0 to 1."""
    until: Until = 1.0
    """The progress of the run, up to 1, at which the weight reaches ``end``."""
    sharpness: Positive | None = None
    """Rate of ``exponential`` (null: 5), power of ``polynomial`` (2), number of steps (4), steepness of ``sigmoid``
    (10)."""


class GapWeight(Section):
    """A weight that falls with the student's distance from the teacher, not with time."""

    schedule: Literal["gap"] = "gap"
    """How the weight changes over the run."""
    start: Share = 0.8
    """The weight at the first distance, from 0 to 1."""
    end: Share = 0.16
    """The weight at a distance of 0, from 0 to 1."""


class ConstantStatesWeight(ConstantWeight):
    """A constant weight."""

    start: Share = 1.0
    """The weight, from 0 to 1."""


class FallingStatesWeight(FallingWeight):
    """A weight that falls with time."""

    start: Share = 1.0
    """The weight at the start of the run, from 0 to 1."""
    end: Share = 0.0
    """The weight from ``until`` on, from 0 to 1."""


class SharpStatesWeight(SharpWeight):
    """A weight that falls with time, by a curve whose sharpness can be set."""

    start: Share = 1.0
    """The weight at the start of the run, from 0 to 1."""
    end: Share = 0.0
    """The weight from ``until`` on, from 0 to 1."""


class GapStatesWeight(GapWeight):
    """A weight that falls with the student's distance from the teacher, not with time."""

    start: Share = 1.0
    """The weight at the first distance, from 0 to 1."""
    end: Share = 0.0
    """The weight at a distance of 0, from 0 to 1."""


TeacherWeight = Annotated[ConstantWeight | FallingWeight | SharpWeight | GapWeight, Field(discriminator="schedule")]
"""The weight ``a`` of the teacher."""
StatesWeight = Annotated[
    ConstantStatesWeight | FallingStatesWeight | SharpStatesWeight | GapStatesWeight, Field(discriminator="schedule")
]
"""The weight ``s`` of the teacher's decoder states."""


class ConstantTemperature(Section):
    """A constant temperature. Cached soft labels are computed at ``start`` and need it."""

    schedule: Literal["constant"] = "constant"
    """How the temperature changes over the run."""
    start: Positive = 1.0
    """The temperature."""


class ChangingTemperature(Section):
    """A temperature that changes over the run; it needs ``teacher.online``."""

    schedule: Literal["linear", "cosine"] = "linear"
    """How the temperature changes over the run."""
    start: Positive = 1.0
    """The temperature at the start of the run."""
    end: Positive = 1.0
    """The temperature at its end."""


Temperature = Annotated[ConstantTemperature | ChangingTemperature, Field(discriminator="schedule")]
"""The temperature T of both divergences."""


def weight_at(settings: TeacherWeight | StatesWeight, u: float, gap: float = 1.0) -> float:
    """Return ``a`` or ``s`` at progress ``u``: from ``start`` to ``end``, reached at ``until``.

    ``gap`` is the value that the schedule ``gap`` needs: :attr:`askd_ray.objective.schedules.Gap.value`.
    """
    if settings.schedule == "constant":
        return settings.start
    if settings.schedule == "gap":
        shape = gap
    else:
        sharpness = settings.sharpness or SHARPNESS[settings.schedule] if isinstance(settings, SharpWeight) else 0.0
        shape = SHAPES[settings.schedule](min(u / settings.until, 1.0), sharpness)
    return settings.end + (settings.start - settings.end) * shape


def temperature_at(settings: Temperature, u: float) -> float:
    """Return ``T`` at progress ``u``."""
    if settings.schedule == "constant":
        return settings.start
    return settings.end + (settings.start - settings.end) * SHAPES[settings.schedule](u, 0.0)
