"""Progressive shrinking: at fixed points of progress, training continues with fewer layers."""

from transformers import WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe, Student
from askd_ray.data.sampler import Sampler
from askd_ray.errors import AskdError
from askd_ray.models.load import load_config
from askd_ray.models.reference import resolve
from askd_ray.models.student import apply_layer_map, build_student, layer_maps
from askd_ray.models.windows import WindowedWhisper
from askd_ray.text.tokens import Tokens
from askd_ray.train.optim import Optimizer, build_optimizer, carry_over


class StudentFactory:
    """Builds a recipe's student, before and after each shrinking, and shrinks a trained one.

    ``teacher_width`` is the width of an online teacher's encoder states, for the loss between encoder states.
    Raises :class:`AskdError` when the recipe's layers do not exist or cannot be merged.
    """

    def __init__(self, recipe: Recipe, teacher_width: int):
        settings = recipe.student
        reference = settings.init or recipe.teacher.model
        self.tokens = Tokens(resolve(reference))
        self._recipe, self._width = recipe, teacher_width
        self._shrinkings = layer_maps(settings, load_config(reference))[1:]

    def build(self, n_shrunk: int) -> WindowedWhisper:
        """Return the untrained student with the layers that it has after ``n_shrunk`` shrinkings."""
        recipe = self._recipe
        return self.wrap(build_student(recipe.student, recipe.teacher.model, n_shrunk)[0], n_shrunk)

    def wrap(self, model: WhisperForConditionalGeneration, n_shrunk: int) -> WindowedWhisper:
        """Return the student around a model that has ``n_shrunk`` shrinkings behind it."""
        hidden_states = self._recipe.objective.hidden_states
        layers = hidden_states.layers if hidden_states.kind != "none" else ()
        tapped_layers = [student_layer for student_layer, _ in layers]
        student = WindowedWhisper(model, tapped_layers, [self._width] * len(layers))
        student.shrunk = n_shrunk
        if self._recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return student

    def shrink(self, student: WindowedWhisper, optimizer: Optimizer) -> tuple[WindowedWhisper, Optimizer]:
        """Return the student after its next shrinking, and its optimizer.

        A layer that stays keeps its optimizer moments; a merged layer gets the mean of its source layers' moments.
        """
        layer_map = self._shrinkings[student.shrunk]
        smaller = self.wrap(apply_layer_map(student.whisper, layer_map), student.shrunk + 1)
        smaller.to_widths = student.to_widths
        smaller.to(next(student.parameters()).device).train(student.training)
        fresh = build_optimizer(smaller, self._recipe.train)
        before = dict(student.named_parameters())
        for name, parameter in smaller.named_parameters():
            carry_over(optimizer, [before[source] for source in layer_map.sources(name)], fresh, parameter)
        return smaller, fresh


def due_shrinkings(settings: Student, progress: float) -> int:
    """Return the number of shrinkings before a step that begins at ``progress``."""
    return sum(progress >= step.at - 1e-9 for step in settings.shrink)


def check_shrinkings(settings: Student, sampler: Sampler) -> None:
    """Check that each shrinking has a step after it.

    Raises :class:`AskdError` when one is too late.
    """
    if settings.shrink and due_shrinkings(settings, last := sampler.last_progress()) < len(settings.shrink):
        raise AskdError(
            f"student.shrink at {settings.shrink[-1].at:g} is too late: the last step begins at {last:.3g} of the run"
        )
