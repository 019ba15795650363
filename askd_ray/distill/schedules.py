"""The weights over a run: pure functions of progress u in [0, 1]. New shapes go into :data:`SHAPES`."""

import math
from collections.abc import Callable

from askd_ray.config.schema import Objective, SelfTeacher, TeacherWeight
from askd_ray.errors import AskdError

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
    "exponential": lambda u: (math.exp(-5.0 * u) - math.exp(-5.0)) / (1.0 - math.exp(-5.0)),
}
"""Each falls from 1 at u = 0 to 0 at u = 1 (``constant`` stays at 1)."""


def teacher_weight(settings: TeacherWeight, u: float) -> float:
    """Return ``a`` at progress ``u``: from ``start`` to ``end``, reached at ``until``."""
    shape = SHAPES[settings.schedule](min(u / settings.until, 1.0))
    return settings.end + (settings.start - settings.end) * shape


def self_weight(settings: SelfTeacher, u: float) -> float:
    """Return ``b`` at progress ``u``: 0 before the switch."""
    return settings.weight if settings.kind != "none" and u >= settings.switch else 0.0


def weights_at(objective: Objective, u: float) -> tuple[float, float]:
    """Return ``(a, b)``, the weights of the teacher and of the student's own knowledge, at progress ``u``."""
    return teacher_weight(objective.teacher_weight, u), self_weight(objective.self_teacher, u)


def check(objective: Objective) -> None:
    """Check that the weight left for cross-entropy is never negative.

    Raises :class:`AskdError` that names where the weights add up to more than 1.
    """
    for step in range(201):
        a, b = weights_at(objective, step / 200)
        if a + b > 1.0 + 1e-9:
            raise AskdError(
                f"objective: teacher weight {a:.2f} + self weight {b:.2f} exceed 1 at progress {step / 200:.2f}: lower "
                "objective.teacher_weight or objective.self_teacher.weight, or move objective.self_teacher.switch"
            )
