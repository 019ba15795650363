"""The stage `label`: a pool of Ray Data actors runs the teacher, one shard at a time."""

from collections import Counter
from typing import Any, cast

import ray.data
import torch

from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import ARRAYS, LabelKey, labels_match, read_labels, write_labels
from askd_ray.data.model_languages import refuse_languages
from askd_ray.data.ray_stream import configure
from askd_ray.data.shards import derived_paths, read_shard, read_table, shard_paths, train_paths
from askd_ray.errors import AskdError
from askd_ray.location import Location, map_concurrently
from askd_ray.models.load import load_whisper
from askd_ray.models.reference import resolve
from askd_ray.progress import Table, bar, console
from askd_ray.ray_cluster import connect
from askd_ray.ray_errors import user_error
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.targets.kl_report import KlLost, kl_table, measure
from askd_ray.targets.pseudo_label import teacher_engine
from askd_ray.targets.soft_labels import kept_states, kept_tokens, label_key
from askd_ray.targets.soft_labels import label as label_utterances
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import usable_device, use_threads


class _TeacherActor:
    """One copy of the teacher: labels a shard, writes the label shard, and returns the number of utterances."""

    def __init__(self, recipe: dict[str, Any], key: LabelKey, threads: int):
        use_threads(threads)
        self.recipe = Recipe.model_validate(recipe)
        self.run = Run(self.recipe)
        self.key = key
        self.model, self.tokens = load_whisper(self.recipe.teacher.model)
        cast(torch.nn.Module, self.model).to(usable_device(self.recipe.train.workers.gpu))
        self.engine = teacher_engine(self.recipe, threads) if self.recipe.has_pseudo_labels else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        utterances = read_shard(self.run.shards / row["shard"])
        labels = label_utterances(self.model, self.tokens, utterances, self.recipe, self.engine)
        write_labels(self.run.labels / row["shard"], labels, self.key)
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
    (run.labels / "tokenizer.json").write_bytes(teacher.file.read_bytes())
    result = _summary(run.labels, shards, recipe)
    if not result["labelled"]:
        raise AskdError(f"label: all {result['utterances']} utterances are left out ({_listed(result['left_out'])})")
    report = [] if recipe.teacher.online else _kl_report(run, shards[0])
    result |= {n: v for k in report if k.k == recipe.teacher.top_k for n, v in _kl_of(k).items()}
    console.print(_table(result, recipe.teacher.model))
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
    share = run.recipe.teacher.gpus_per_copy if run.recipe.train.workers.gpu else 0.0
    # On CPUs, one copy of the teacher for every 8 cores.
    pool = max(1, int(_gpus(run.recipe) / share) if share else int(ray.cluster_resources().get("CPU", 0)) // 8)
    rows = sum(map_concurrently(lambda s: read_table(s, ["id"]).num_rows, todo))
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        cast(Any, _TeacherActor),
        fn_constructor_args=(run.recipe.model_dump(mode="json"), key, 0),
        num_gpus=share,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool, len(items))),
    )
    with bar(f"label with {run.recipe.teacher.model}", rows, "utt") as progress, user_error():
        for row in dataset.iter_rows():
            progress.advance(row["utterances"])
            progress.note(row["shard"])


def _gpus(recipe: Recipe) -> int:
    """Return the number of GPUs that the stage may use."""
    if not recipe.train.workers.gpu:
        return 0
    connect(use_gpu=True)
    return int(ray.cluster_resources().get("GPU", 0))


def _kl_report(run: Run, shard: Location) -> list[KlLost]:
    """Measure in this process, or on a machine with a GPU: a large teacher takes minutes on a CPU."""
    if not _gpus(run.recipe):
        return measure(run.recipe, shard, run.labels / shard.name)
    task = ray.remote(num_gpus=1)(measure)
    with user_error():
        return ray.get(task.remote(run.recipe, shard, run.labels / shard.name))


def _kl_of(lost: KlLost) -> dict[str, float]:
    return {"kl_lost": round(lost.nats, 5), "kl_lost_share": round(lost.share, 5)}


def _summary(folder: Location, shards: list[Location], recipe: Recipe) -> dict[str, Any]:
    sizes = kept_tokens(recipe), kept_states(recipe)
    left_out: Counter[str] = Counter()
    n_labels = n_tokens = n_of_teacher = n_bytes = 0
    loss = 0.0
    for shard in shards:  # one at a time: all label shards together may not fit into memory
        for label in read_labels(folder / shard.name, *sizes):
            n_labels += 1
            left_out.update([label.left_out] if label.left_out else [])
            n_tokens += len(label.target_ids)
            n_bytes += sum(getattr(label, name).nbytes for name in ARRAYS)
            n_of_teacher += label.has_teacher * len(label.target_ids)
            loss += label.has_teacher * label.teacher_loss * len(label.target_ids)
    return {
        "utterances": n_labels,
        "labelled": n_labels - left_out.total(),
        "left_out": dict(left_out.most_common()),
        "tokens": n_tokens,
        "teacher_loss": round(loss / max(n_of_teacher, 1), 4),
        "bytes_per_token": round(n_bytes / max(n_tokens, 1), 1),
    }


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
