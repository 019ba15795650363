"""Progressive shrinking: at fixed points of progress, training continues with fewer layers."""

from askd_ray.config.student import Student as Settings
from askd_ray.config.train import Optimization
from askd_ray.data.sampler import Sampler
from askd_ray.errors import AskdError
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.train.optim import Optimizer, build_optimizer, carry_over


def shrink(
    student_kind: StudentKind, student: StudentModel, optimizer: Optimizer, settings: Optimization
) -> tuple[StudentModel, Optimizer]:
    """Return the student after its next shrinking, and its optimizer.

    A layer that stays keeps its optimizer moments; a merged layer gets the mean of its source layers' moments.
    """
    smaller, sources = student_kind.shrink(student)
    smaller.to(next(student.parameters()).device).train(student.training)
    fresh = build_optimizer(smaller, settings)
    before = dict(student.named_parameters())
    for name, parameter in smaller.named_parameters():
        carry_over(optimizer, [before[source] for source in sources(name)], fresh, parameter)
    return smaller, fresh


def due_shrinkings(settings: Settings, progress: float) -> int:
    """Return the number of shrinkings before a step that begins at ``progress``."""
    return sum(progress >= step.at - 1e-9 for step in settings.shrink)


def check_shrinkings(settings: Settings, sampler: Sampler) -> None:
    """Check that each shrinking has a step after it.

    Raises :class:`AskdError` when one is too late.
    """
    if settings.shrink and due_shrinkings(settings, last := sampler.last_progress()) < len(settings.shrink):
        raise AskdError(
            f"student.shrink at {settings.shrink[-1].at:g} is too late: the last step begins at {last:.3g} of the run"
        )
