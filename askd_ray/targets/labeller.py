"""What writes the labels of a recipe: its Whisper teacher, or the LLM of its student."""

from collections.abc import Callable, Sequence
from functools import partial

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels
from askd_ray.data.schema import Utterance
from askd_ray.targets.llm_labels import label_with_llm, load_teacher_llm
from askd_ray.targets.pseudo_label import teacher_engine
from askd_ray.targets.soft_labels import label, load_teacher

Labeller = Callable[[Sequence[Utterance]], list[SoftLabels]]
"""Returns the labels of utterances, in their order."""


def open_labeller(recipe: Recipe, threads: int) -> Labeller:
    """Return the labeller of a recipe, on the device of its stages; ``threads`` of torch: 0 for all cores.

    Raises :class:`AskdError` when there is no such model, its files are damaged, or there is no GPU.
    """
    if recipe.student.reader == "llm":
        return partial(label_with_llm, load_teacher_llm(recipe), recipe)
    model, tokens = load_teacher(recipe)
    engine = teacher_engine(recipe, threads) if recipe.has_pseudo_labels else None
    return lambda utterances: label(model, tokens, utterances, recipe, engine)
