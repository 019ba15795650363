"""The derived clips of dev, with the texts that `askd label` found for them."""

from collections.abc import Iterator
from dataclasses import replace

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import check_labels, read_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import derived_paths, read_shard
from askd_ray.models.reference import resolve
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key
from askd_ray.text.tokens import Tokens


def derived_dev_clips(recipe: Recipe) -> Iterator[Utterance]:
    """Yield the derived clips of dev that have a reference, with this reference as their text; clips without speech
    have the empty text.

    Raises :class:`AskdError` when shards or labels are missing, damaged or stale.
    """
    run, key = Run(recipe), label_key(recipe)
    tokens = Tokens(resolve(recipe.teacher.model))
    for path in derived_paths(run.shards, "dev"):
        labels = run.labels / path.name
        check_labels(labels, path, key)
        for utterance, label in zip(read_shard(path), read_labels(labels, key["top_k"]), strict=True):
            if not label.left_out:
                yield replace(utterance, text=tokens.decode(label.target_ids[:-1].tolist()))
