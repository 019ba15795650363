"""The stage `label`: a pool of Ray Data actors runs the teacher, one shard at a time."""

import math
import os
from collections import Counter
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow.compute as pc
import ray.data

from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, bytes_per_token, labels_match, write_labels
from askd_ray.data.model_languages import refuse_languages
from askd_ray.data.ray_stream import configure
from askd_ray.data.row_index import row_index
from askd_ray.data.shards import derived_paths, read_shard, read_table, shard_paths, train_paths
from askd_ray.errors import AskdError
from askd_ray.location import Location, map_concurrently
from askd_ray.models.reference import resolve
from askd_ray.progress import Table, bar, console
from askd_ray.ray_cluster import connect, cpus_by_node
from askd_ray.ray_errors import user_error
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.targets.kl_report import KlLost, kl_table, measure
from askd_ray.targets.labeller import open_labeller
from askd_ray.targets.llm_labels import llm_tokenizer
from askd_ray.targets.soft_labels import kept_states, kept_tokens, label_key
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import use_threads

_CORES = 8  # for a copy of the teacher on a CPU: more help it little


class _TeacherActor:
    """One copy of the teacher: labels a shard, writes the label shard, and returns the number of utterances."""

    def __init__(self, recipe: dict[str, Any], key: LabelKey, threads: int):
        use_threads(threads)
        self.recipe = Recipe.model_validate(recipe)
        self.run = Run(self.recipe)
        self.key = key
        self.labeller = open_labeller(self.recipe, threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        utterances = read_shard(self.run.shards / row["shard"])
        write_labels(self.run.labels / row["shard"], self.labeller(utterances), self.key)
        return {"shard": row["shard"], "utterances": len(utterances)}


def label(recipe: Recipe, force: bool = False) -> Result:
    """Write the teacher's soft labels for every train shard of a run. A killed run resumes with the remaining shards.

    Returns and records ``utterances`` (their number), ``labelled`` (used for training), ``left_out`` (excluded,
    {reason: n}), ``tokens``, ``teacher_loss`` (mean over tokens, nats) and ``bytes_per_token``. With cached labels also
    ``kl_lost``, the part of the dense KL to the untrained student that the top k miss (nats a token, on a sample), and
    ``kl_lost_share``, its share of the dense KL.

    Raises :class:`AskdError` when no utterance remains for training, and before any work when the teacher does not know
    the language of an utterance.
    """
    recipe = with_absolute_paths(recipe)  # an actor has another working directory
    run = Run(recipe)
    key = label_key(recipe)
    inputs = stage_key(run.key("prepare"), key)
    shards = train_paths(run.shards)
    teacher = Tokens(resolve(recipe.teacher.model))
    refuse_languages(
        _languages(shard_paths(run.shards, "train")),
        f"teacher.model {recipe.teacher.model}",
        teacher.languages,
        "label: the shards have",
    )
    labelled = [*shards, *derived_paths(run.shards, "dev")]  # crops of dev need a text
    are_done = map_concurrently(lambda s: not force and labels_match(run.labels / s.name, s, key), labelled)
    todo = [s for s, is_done in zip(labelled, are_done, strict=True) if not is_done]
    done = None if todo else run.finished("label", inputs)

    def work() -> Result:
        if todo:
            _run_actors(run, todo, key)
        return _finish_labels(run, shards, teacher)

    def summary(result: Result) -> str:
        return f"{result['utterances']} utterances in {run.labels}"

    return run_stage(StageWork(run, "label", inputs, done, work, summary, forgets=False))


def _finish_labels(run: Run, shards: list[Location], teacher: Tokens) -> Result:
    """Write the tokenizer beside complete labels, and return and print what they are."""
    recipe = run.recipe
    # Readers of the labels need the tokenizer to decode the target ids.
    of_llm = recipe.student.reader == "llm"
    tokenizer = llm_tokenizer(recipe).encode() if of_llm else teacher.file.read_bytes()
    (run.labels / "tokenizer.json").write_bytes(tokenizer)
    result = _summary(run.labels, shards, recipe)
    if not result["labelled"]:
        raise AskdError(f"label: all {result['utterances']} utterances are left out ({_listed(result['left_out'])})")
    row_index(run.shards, run.labels, label_key(recipe))  # every training reads it
    report = [] if recipe.teacher.online or of_llm else _kl_report(run, shards[0])
    result |= {n: v for k in report if k.k == recipe.teacher.top_k for n, v in _kl_of(k).items()}
    console.print(_table(result, recipe.student.llm.model if of_llm else recipe.teacher.model))
    if report:
        console.print(kl_table(report))
    return result


def _languages(shards: list[Location]) -> Counter[str]:
    """Return the number of utterances by language."""
    tables = map_concurrently(lambda s: read_table(s, ["language"]), shards)
    return Counter(language for table in tables for language in table["language"].to_pylist())


def _run_actors(run: Run, todo: list[Location], key: LabelKey) -> None:
    connect(use_gpu=run.recipe.train.workers.gpu)
    configure()
    items = [{"shard": s.name} for s in todo]
    copy = _copy_of_teacher(run.recipe)
    rows = sum(map_concurrently(lambda s: read_table(s, ["id"]).num_rows, todo))
    # Ray starts as many copies as a cluster has room for, and more when it grows: only the work is a limit.
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        cast(Any, _TeacherActor),
        fn_constructor_args=(run.recipe.model_dump(mode="json"), key, copy.threads),
        num_gpus=copy.gpus,
        num_cpus=copy.cpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=int(min(len(items), copy.max_copies))),
    )
    with bar(f"label {run.recipe.name}", rows, "utt") as progress, user_error():
        for row in dataset.iter_rows():
            progress.advance(row["utterances"])
            progress.note(row["shard"])


class _Copy(NamedTuple):
    """What a copy of the teacher takes: GPUs and logical CPUs from Ray, and threads of torch (0: all cores)."""

    gpus: float
    cpus: float
    threads: int
    max_copies: float = math.inf


def _copy_of_teacher(recipe: Recipe) -> _Copy:
    """Return what a copy takes: its part of a GPU, or 8 of a machine's cores, or all cores of a smaller machine."""
    if recipe.train.workers.gpu:
        return _Copy(recipe.teacher.gpus_per_copy, 0.5, 0)
    largest = max(cpus_by_node())
    if largest >= 2 * _CORES:
        return _Copy(0.0, _CORES - 0.5, _CORES)
    if "RAY_ADDRESS" not in os.environ:
        # It does not grow, and has room for what else runs here: also for the copy of a command that has just failed.
        return _Copy(0.0, 0.5, 0, max_copies=1)
    # A little over half of the machine: one copy, and room for what else runs there.
    return _Copy(0.0, largest / 2 + 0.1, 0)


def _kl_report(run: Run, shard: Location) -> list[KlLost]:
    """Measure in this process, or on a machine with a GPU: a large teacher takes minutes on a CPU."""
    if not run.recipe.train.workers.gpu:
        return measure(run.recipe, shard, run.labels / shard.name)
    connect(use_gpu=True)
    task = ray.remote(num_gpus=1)(measure)
    with user_error():
        return ray.get(task.remote(run.recipe, shard, run.labels / shard.name))


def _kl_of(lost: KlLost) -> dict[str, float]:
    return {"kl_lost": round(lost.nats, 5), "kl_lost_share": round(lost.share, 5)}


def _summary(folder: Location, shards: list[Location], recipe: Recipe) -> dict[str, Any]:
    """Return the counts of label shards; the labels themselves, nearly all of the bytes, are not read."""
    counts = map_concurrently(lambda shard: _count(folder / shard.name), shards)
    left_out = sum((c.left_out for c in counts), Counter[str]())
    n_labels = sum(c.labels for c in counts)
    return {
        "utterances": n_labels,
        "labelled": n_labels - left_out.total(),
        "left_out": dict(left_out.most_common()),
        "tokens": sum(c.tokens for c in counts),
        "teacher_loss": round(math.fsum(c.loss for c in counts) / max(sum(c.tokens_of_teacher for c in counts), 1), 4),
        "bytes_per_token": bytes_per_token(kept_tokens(recipe), kept_states(recipe)),
    }


class _Counts(NamedTuple):
    """The counts of a label shard; ``loss``: the teacher's, summed over the tokens for which it has labels."""

    labels: int
    tokens: int
    tokens_of_teacher: int
    loss: float
    left_out: Counter[str]


def _count(labels: Location) -> _Counts:
    columns = read_table(labels, ["left_out", "target_ids", "teacher_loss"])
    lengths = pc.call_function("list_value_length", [columns["target_ids"]]).to_numpy()
    losses = columns["teacher_loss"].to_numpy()  # null becomes NaN
    of_teacher = ~np.isnan(losses)
    reasons = Counter(reason for reason in columns["left_out"].to_pylist() if reason)
    loss = float(lengths[of_teacher] @ losses[of_teacher].astype(np.float64))
    return _Counts(len(lengths), int(lengths.sum()), int(lengths[of_teacher].sum()), loss, reasons)


def _table(result: dict[str, Any], teacher: str) -> Table:
    table = Table(title=f"labels of {teacher}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in result.items():
        if name == "left_out":
            for reason, n in value.items():
                table.add_row(f"left out: {reason}", str(n))
        else:
            table.add_row(name.replace("_", " "), str(value))
    return table


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())
