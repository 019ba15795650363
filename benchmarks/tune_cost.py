"""The cost of a search's trial when soft labels and decoded clips already exist.

    python benchmarks/tune_cost.py [--data FOLDER] [--clips N] [--epochs X] [--rounds N] [--quick] [--json]

Whisper tiny.en as teacher and student, in one process, in turn: a trial as `askd tune` runs it after the first one, and
a trial that does for itself what they share, so that has the teacher label the train clips, and decodes them anew in
every epoch. Both build the student, train it and score it on dev, as long as --epochs says: by default as long as the
trials of the recipe `demo`. What the first trial of a search pays, labels and the files of decoded clips, is not in it.

--data takes a folder of Parquet files (Hugging Face convention); without it, the IVR prompts. --json prints one line of
JSON last.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import one_line_errors
import torch
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips

from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import write_labels
from askd_ray.data.sampler import DataCursor, Sampler
from askd_ray.data.schema import Batch
from askd_ray.data.shards import read_table, shard_paths, to_table, to_utterances, write_table
from askd_ray.fetch.weights import fetch_weights
from askd_ray.files import remove
from askd_ray.models.load import load_whisper
from askd_ray.progress import bar, console
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext

DEV_SHARE = 6  # every sixth clip, the same ratio as in the recipe `demo`


class Sharing(PlainContext):
    """The context of a trial that shares decoded clips."""

    features: Path | None = None

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Build the batches from decoded clips."""
        return super().batches(replace(loader, features_folder=self.features), sampler, cursor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--epochs", type=float, default=load_recipe("demo").tune.epochs)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_threads()
    n_clips, rounds = (24, 1) if options.quick else (options.clips, options.rounds)
    with tempfile.TemporaryDirectory() as root:
        recipe = _run(Path(root), options.data, n_clips, options.epochs)
        shared, alone = list[float](), list[dict[str, float]]()
        with bar("trials", 1 + 2 * rounds, "trial") as progress:
            _with_others(recipe, Path(root))  # the first trial decodes for all
            progress.advance()
            for _ in range(rounds):
                shared.append(_with_others(recipe, Path(root)))
                progress.advance()
                alone.append(_alone(recipe, Path(root)))
                progress.advance()
    labels, trains = (median(one[part] for one in alone) for part in ("label", "train"))
    table = Table(title=f"a trial of {options.epochs:g} epochs of {n_clips} clips, medians of {rounds}")
    for column in ("trial", "labels", "training and dev", "all"):
        table.add_column(column, justify="right")
    table.add_row("by itself", f"{labels:.1f} s", f"{trains:.1f} s", f"{labels + trains:.1f} s")
    table.add_row("among others", "", f"{median(shared):.1f} s", f"{median(shared):.1f} s")
    console.print(table)
    ratio = median(shared_s / sum(one.values()) for shared_s, one in zip(shared, alone, strict=True))
    console.print(f"cost of a trial among others: {ratio:.3f} of one by itself")
    result = {
        "trial_cost_ratio": round(ratio, 3),
        "shared_s": round(median(shared), 2),
        "alone_s": {"label": round(labels, 2), "train": round(trains, 2)},
        "epochs": options.epochs,
        "clips": n_clips,
        "rounds": rounds,
    }
    if options.json:
        print(json.dumps(result))


def _run(root: Path, data: Path | None, n_clips: int, epochs: float) -> Recipe:
    """Write shards, labels and dev, and return their recipe."""
    train = {"epochs": epochs, "evals_per_epoch": 1}
    teacher = {"model": str(fetch_weights("tiny.en"))}
    values = {"name": "trials", "runs_root": str(root), "teacher": teacher, "train": train}
    recipe = Recipe.model_validate(values | {"data": {"utterances_per_shard": 16}})
    found = clips(data, n_clips + n_clips // DEV_SHARE)
    dev = found[:: DEV_SHARE + 1][: n_clips // DEV_SHARE]
    write_run(recipe, [clip for clip in found if clip not in dev])
    write_table(Run(recipe).shards / "dev-00000-of-00001.parquet", to_table(dev))
    return recipe


def _train(recipe: Recipe, root: Path, features: Path | None) -> float:
    """Run a trial as `askd tune` does; return its seconds."""
    context = Sharing(torch.device(usable_device(recipe.train.workers.gpu)))
    context.features = features
    begun = time.perf_counter()
    build_loop(recipe, context, root / "trial", "trial").run()
    took = time.perf_counter() - begun
    remove(root / "trial")
    return took


def _with_others(recipe: Recipe, root: Path) -> float:
    return _train(recipe, root, root / "features")


def _alone(recipe: Recipe, root: Path) -> dict[str, float]:
    """Label with a separate teacher, and train; return the seconds of both."""
    run = Run(recipe)
    begun = time.perf_counter()
    model, tokens = load_whisper(recipe.teacher.model)
    model.to(usable_device(recipe.train.workers.gpu))
    for shard in shard_paths(run.shards, "train"):
        write_labels(
            run.labels / shard.name, label(model, tokens, to_utterances(read_table(shard)), recipe), label_key(recipe)
        )
    took = time.perf_counter() - begun
    return {"label": took, "train": _train(recipe, root, None)}


if __name__ == "__main__":
    one_line_errors.run(main)
