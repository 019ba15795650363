"""What a training reads besides dev: the batches of shards and labels."""

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import StatesShape
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import kept_states, label_key


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
        states_shape=_states_read(recipe),
        log_mel_on_device=recipe.train.workers.gpu,
    )


def _states_read(recipe: Recipe) -> StatesShape:
    """Return the shape of the cached decoder states that the objective reads per token."""
    settings = recipe.objective.decoder_states
    if settings.kind == "none" or recipe.teacher.online:
        return 0, 0
    n_layers, width = kept_states(recipe)
    return 1 if settings.layers == "last" else n_layers, width
