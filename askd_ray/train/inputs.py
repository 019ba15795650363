"""What a training reads besides dev: the batches of shards and labels."""

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
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
