"""Progressive shrinking: at set points of progress the student goes on with fewer layers."""

from transformers import WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe, Student
from askd_ray.data.plan import Planner
from askd_ray.errors import AskdError
from askd_ray.models.load import load_config
from askd_ray.models.reference import resolve
from askd_ray.models.student import apply_layer_map, build_student, surgeries
from askd_ray.models.windows import WindowedWhisper
from askd_ray.text.tokens import Tokens
from askd_ray.train.optim import Optimizer, build_optimizer, carry_over


class StudentFactory:
    """A recipe's student as built and after each shrinking, and the way from one to the next.

    ``teacher_width`` is that of an online teacher's encoder states, for the recipe's loss between them.
    Raises :class:`AskdError` when the recipe's layers are not there or cannot be merged.
    """

    def __init__(self, recipe: Recipe, teacher_width: int):
        settings = recipe.student
        reference = settings.init or recipe.teacher.model
        self.tokens = Tokens(resolve(reference))
        self._recipe, self._width = recipe, teacher_width
        self._shrinkings = surgeries(settings, load_config(reference))[1:]

    def at(self, n_shrunk: int) -> WindowedWhisper:
        """Return the student after so many shrinkings, with the weights of before any training."""
        recipe = self._recipe
        return self.around(build_student(recipe.student, recipe.teacher.model, n_shrunk)[0], n_shrunk)

    def around(self, model: WhisperForConditionalGeneration, n_shrunk: int) -> WindowedWhisper:
        """Return the student of a model that has gone through so many shrinkings."""
        wanted = self._recipe.objective.hidden_states
        layers = wanted.layers if wanted.kind != "none" else ()
        student = WindowedWhisper(model, [mine for mine, _ in layers], [self._width] * len(layers))
        student.shrunk = n_shrunk
        if self._recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return student

    def shrink(self, student: WindowedWhisper, optimizer: Optimizer) -> tuple[WindowedWhisper, Optimizer]:
        """Return the student after its next shrinking, and its optimizer.

        A layer that stays keeps its moments; a merged one has the mean of the moments of those it is made of.
        """
        surgery = self._shrinkings[student.shrunk]
        smaller = self.around(apply_layer_map(student.whisper, surgery), student.shrunk + 1)
        smaller.to_widths = student.to_widths
        smaller.to(next(student.parameters()).device).train(student.training)
        fresh = build_optimizer(smaller, self._recipe.train)
        before = dict(student.named_parameters())
        for name, parameter in smaller.named_parameters():
            carry_over(optimizer, [before[source] for source in surgery.sources(name)], fresh, parameter)
        return smaller, fresh


def due_shrinkings(settings: Student, progress: float) -> int:
    """Return how many shrinkings come before a step that begins at ``progress``."""
    return sum(progress >= step.at - 1e-9 for step in settings.shrink)


def check_shrinkings(settings: Student, planner: Planner) -> None:
    """Check that each shrinking has a step after it.

    Raises :class:`AskdError` when one is too late.
    """
    if settings.shrink and due_shrinkings(settings, last := planner.last_progress()) < len(settings.shrink):
        raise AskdError(
            f"student.shrink at {settings.shrink[-1].at:g} is too late: the last step begins at {last:.3g} of the run"
        )
