"""What a training reads: the batches of shards and labels, and the clips of dev."""

from collections.abc import Iterator
from dataclasses import replace

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import StatesShape, check_labels, read_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import derived_paths, read_shard, read_utterances
from askd_ray.models.reference import resolve
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import kept_states, label_key
from askd_ray.text.tokens import Tokens


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
    )


def _states_read(recipe: Recipe) -> StatesShape:
    """Return the shape of the cached decoder states that the objective reads per token."""
    settings = recipe.objective.decoder_states
    if settings.kind == "none" or recipe.teacher.online:
        return 0, 0
    n_layers, width = kept_states(recipe)
    return 1 if settings.layers == "last" else n_layers, width


def read_dev(recipe: Recipe) -> list[Utterance]:
    """Return the utterances of dev, then the clips that are made of them and have a reference.

    Raises :class:`AskdError` when shards or labels are missing, damaged or stale.
    """
    return [*read_utterances(Run(recipe).shards, "dev"), *_derived(recipe)]


def _derived(recipe: Recipe) -> Iterator[Utterance]:
    """Yield the derived clips of dev with their texts; those of crops are in the labels."""
    run, key = Run(recipe), label_key(recipe)
    tokens = Tokens(resolve(recipe.teacher.model))
    for path in derived_paths(run.shards, "dev"):
        labels = run.labels / path.name
        check_labels(labels, path, key)
        for utterance, label in zip(read_shard(path), read_labels(labels, key["top_k"]), strict=True):
            if not label.left_out:
                yield replace(utterance, text=tokens.decode(label.target_ids[:-1].tolist()))
