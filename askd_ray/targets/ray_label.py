"""The stage `label`: a pool of Ray Data actors runs the teacher, a shard at a time."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import ray.data
import torch
from rich.table import Table

from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, labels_match, read_labels, write_labels
from askd_ray.data.ray_stream import configure
from askd_ray.data.shards import read_table, shard_paths, to_utterances
from askd_ray.files import atomic_path
from askd_ray.models.load import load_whisper, resolve
from askd_ray.progress import bar, console
from askd_ray.ray_cluster import connect
from askd_ray.ray_errors import user_error
from askd_ray.runs import Run, stage_key
from askd_ray.targets.soft_labels import kept_tokens, label_key
from askd_ray.targets.soft_labels import label as label_utterances
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import best_device, use_threads


class _TeacherActor:
    """One copy of the teacher: labels a shard, writes the label shard, and says how much that was."""

    def __init__(self, recipe: dict[str, Any], key: LabelKey, threads: int):
        use_threads(threads)
        self.recipe = Recipe.model_validate(recipe)
        self.key = key
        self.model, self.tokens = load_whisper(self.recipe.teacher.model)
        cast(torch.nn.Module, self.model).to(best_device())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard, target = Path(row["shard"]), Path(row["labels"])
        utterances = to_utterances(read_table(shard))
        write_labels(target, label_utterances(self.model, self.tokens, utterances, self.recipe), self.key)
        return {"shard": shard.name, "utterances": len(utterances)}


def label(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Write the teacher's soft labels for every train shard of a run. A killed run goes on with the shards left.

    Returns and records ``utterances``, ``tokens``, ``too_long`` (texts with more tokens than the model has positions:
    they are left out of training), ``teacher_loss`` (mean over tokens, nats) and ``bytes_per_token``.
    """
    recipe = with_absolute_paths(recipe)  # an actor runs in a folder of its own
    run = Run(recipe)
    key = label_key(recipe)
    inputs = stage_key(run.key("prepare"), key)
    shards = shard_paths(run.shards, "train")
    begun = run.begin()
    todo = [s for s in shards if force or not labels_match(run.labels / s.name, s, key)]
    done = run.finished("label", inputs)
    if not todo and done is not None:
        console.print(f"label: finished already ({done['utterances']} utterances in {run.labels})")
        return done
    if todo:
        _run_actors(run, todo, key)
    with atomic_path(run.labels / "tokenizer.json") as temporary:  # what the target ids mean, for whoever reads them
        shutil.copy(Tokens(resolve(recipe.teacher.model)).file, temporary)
    result = _summary(run.labels, shards, kept_tokens(recipe))
    console.print(_table(result, recipe.teacher.model))
    return run.finish("label", inputs, result, begun)


def _run_actors(run: Run, todo: list[Path], key: LabelKey) -> None:
    connect()
    configure()
    items = [{"shard": str(s), "labels": str(run.labels / s.name)} for s in todo]
    gpus = int(ray.cluster_resources().get("GPU", 0)) if run.recipe.train.use_gpu else 0
    pool = max(
        1, gpus or int(ray.cluster_resources()["CPU"]) // 8
    )  # on CPUs one copy uses all cores of a small machine
    rows = sum(read_table(s, ["id"]).num_rows for s in todo)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        cast(Any, _TeacherActor),
        fn_constructor_args=(run.recipe.model_dump(mode="json"), key, 0),
        num_gpus=1 if gpus else 0,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool, len(items))),
    )
    with bar(f"label with {run.recipe.teacher.model}", rows, "utt") as progress, user_error():
        for row in dataset.iter_rows():
            progress.advance(row["utterances"])
            progress.note(row["shard"])


def _summary(folder: Path, shards: list[Path], top_k: int) -> dict[str, Any]:
    labels = [made for shard in shards for made in read_labels(folder / shard.name, top_k)]
    n_tokens = sum(len(made.target_ids) for made in labels)
    arrays = ("top_ids", "top_log_probs", "rest_log_prob", "token_loss")
    n_bytes = sum(getattr(made, name).nbytes for made in labels for name in arrays)
    return {
        "utterances": len(labels),
        "tokens": n_tokens,
        "too_long": sum(1 for made in labels if made.left_out),
        "teacher_loss": round(sum(m.teacher_loss * len(m.target_ids) for m in labels) / max(n_tokens, 1), 4),
        "bytes_per_token": round(n_bytes / max(n_tokens, 1), 1),
    }


def _table(result: dict[str, Any], teacher: str) -> Table:
    table = Table(title=f"soft labels of {teacher}")
    for name in result:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(json.dumps(value) for value in result.values()))
    return table
