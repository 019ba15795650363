"""The shards of a run and their labels, as `askd prepare` and `askd label` leave them, from clips at hand."""

import time
from collections.abc import Sequence

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.models.load import load_whisper
from askd_ray.progress import bar
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.torch_setup import best_device

N_DEV = 2


def write_run(recipe: Recipe, utterances: Sequence[Utterance]) -> float:
    """Write train shards and labels, and a dev split of a few short clips; returns the seconds of labelling."""
    run, size = Run(recipe), recipe.data.utterances_per_shard
    short = sorted(utterances, key=lambda u: u.duration_s)[:N_DEV]
    write_table(run.shards / "dev-00000-of-00001.parquet", to_table(short))
    model, tokens = load_whisper(recipe.teacher.model)
    model.to(best_device())
    parts = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    took = 0.0
    with bar("soft labels", len(parts), "shard") as progress:
        for number, part in enumerate(parts):
            name = f"train-{number:05d}-of-{len(parts):05d}.parquet"
            write_table(run.shards / name, to_table(part))
            begun = time.perf_counter()
            labels = label(model, tokens, part, recipe)
            took += time.perf_counter() - begun
            write_labels(run.labels / name, labels, label_key(recipe))
            progress.advance()
    return took
