"""Write the shards and labels of a run, as `askd prepare` and `askd label` do, from given clips."""

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
from askd_ray.torch_setup import usable_device

N_DEV = 2


def write_run(recipe: Recipe, utterances: Sequence[Utterance]) -> float:
    """Write train shards and labels, a dev split of a few short clips, and the records of both stages.

    Returns the labelling time in seconds.
    """
    run, size = Run(recipe), recipe.data.utterances_per_shard or 64
    short = sorted(utterances, key=lambda u: u.duration_s)[:N_DEV]
    write_table(run.shards / "dev-00000-of-00001.parquet", to_table(short))
    model, tokens = load_whisper(recipe.teacher.model)
    model.to(usable_device(recipe.train.workers.gpu))
    parts = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    took, n_tokens, loss = 0.0, 0, 0.0
    with bar("soft labels", len(parts), "shard") as progress:
        for number, part in enumerate(parts):
            name = f"train-{number:05d}-of-{len(parts):05d}.parquet"
            write_table(run.shards / name, to_table(part))
            begun = time.perf_counter()
            labels = label(model, tokens, part, recipe)
            took += time.perf_counter() - begun
            write_labels(run.labels / name, labels, label_key(recipe))
            n_tokens += sum(len(made.target_ids) for made in labels)
            loss += sum(made.teacher_loss * len(made.target_ids) for made in labels)
            progress.advance()
    _write_records(run, utterances, {"tokens": n_tokens, "teacher_loss": loss / n_tokens})
    return took


def _write_records(run: Run, train: Sequence[Utterance], label_totals: dict[str, float]) -> None:
    counts = {"train": len(train), "dev": N_DEV, "test": 0}
    minutes = {"train": round(sum(u.duration_s for u in train) / 60, 2), "dev": 0.1, "test": 0.0}
    prepared = {"read": len(train) + N_DEV, "utterances": counts, "minutes": minutes, "quarantined": {}}
    labelled = {"utterances": len(train), "labelled": len(train), "left_out": {}, **label_totals}
    run.finish("prepare", "shards", prepared, time.monotonic())
    run.finish("label", "labels", labelled, time.monotonic())
