"""What a training reads besides dev: the batches of shards and labels, and the online teacher."""

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.models.load import load_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key


def make_batch_loader(recipe: Recipe, n_mels: int, teacher_n_mels: int = 0) -> BatchLoader:
    """Return the loader of a recipe's train shards and labels."""
    run = Run(recipe)
    return BatchLoader(
        shards=run.shards,
        labels=run.labels,
        label_key=label_key(recipe),
        n_mels=n_mels,
        teacher_n_mels=teacher_n_mels,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=recipe.seed,
    )


def online_teacher_model(recipe: Recipe) -> WindowedWhisper | None:
    """Return the teacher that runs beside the student, or None unless the recipe sets ``teacher.online``."""
    if not recipe.teacher.online:
        return None
    hidden_states = recipe.objective.hidden_states
    layers = hidden_states.layers if hidden_states.kind != "none" else ()
    return WindowedWhisper(load_whisper(recipe.teacher.model)[0], [teacher_layer for _, teacher_layer in layers])
