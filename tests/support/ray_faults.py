"""Faults from outside: processes that die, and files that change, while a stage runs on a real Ray cluster."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import psutil
import torch.distributed as dist
import torch.multiprocessing as mp
from killed_run import CPU, assert_same_run, ledger_of
from small_run import merged
from tiny_run import record_as_labelled

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.shards import read_utterances, to_table, write_table
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.torch_setup import use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.track import read_metrics

N_CLIPS, EPOCHS, STEPS = 14, 3, 21


def in_small_shards(labelled: Recipe, root: Path) -> Recipe:
    """Return a run of the same clips in seven shards, trained by two workers in steps of two, so that there is time."""
    train = {"epochs": EPOCHS, "checkpoint_steps": 3, "workers": {"count": 2}}
    train |= {"batching": {"utterances": 1, "shuffle_blocks": 2}}
    values = labelled.model_dump(mode="json")
    recipe = Recipe.model_validate({**values, "runs_root": str(root), "train": merged(values["train"], train)})
    run, model, tokens = Run(recipe), *load_whisper(recipe.teacher.model)
    use_threads()  # as many as a labelling actor takes, or sums are rounded otherwise
    clips = read_utterances(Run(labelled).shards, "train")
    for number in range(7):
        name = f"train-{number:05d}-of-00007.parquet"
        two = clips[2 * number : 2 * number + 2]
        write_table(run.shards / name, to_table(two))
        write_labels(run.labels / name, label(model, tokens, two, recipe), label_key(recipe))
    write_table(run.shards / "dev-00000-of-00001.parquet", to_table(read_utterances(Run(labelled).shards, "dev")))
    record_as_labelled(run)
    return recipe


def plain_two_ranks(recipe: Recipe, folder: Path) -> None:
    """Run a recipe's loop on two processes without Ray, undisturbed."""
    mp.spawn(_rank, (recipe.model_dump_json(), str(folder)), nprocs=2)


def _rank(rank: int, text: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}.ranks", rank=rank, world_size=2)
    build_loop(Recipe.model_validate_json(text), PlainContext(CPU, rank, 2), Path(folder), "key").run()
    dist.destroy_process_group()


def ray_processes(name: str, root: psutil.Process | None = None) -> list[psutil.Process]:
    """Return the Ray workers below a process (this one), so of its own cluster, that do something of this name."""
    found: list[psutil.Process] = []
    for process in (root or psutil.Process()).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and name in title:
            found.append(process)
    return found


def last_step(folder: Path) -> int:
    """Return the last step that a run has told of, or 0."""
    return max((int(line["step"]) for line in read_metrics(folder)), default=0)


@contextmanager
def when(moment: Callable[[], object], fault: Callable[[], object]) -> Iterator[None]:
    """Let a fault happen as soon as its moment has come while the block runs; it must come."""
    over = Event()

    def watch() -> bool:
        while not over.wait(0.01):
            if moment():
                fault()
                return True
        return False

    with ThreadPoolExecutor(1) as pool:
        happened = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
        assert happened.result(), "the run had ended before the fault came"


def assert_undisturbed(folder: Path, expected: Path) -> None:
    """The run ended as one without a fault: the same bits, and every utterance exactly once an epoch."""
    assert_same_run(folder, expected)
    assert_every_utterance_was_seen_once(folder)
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("best"))
    assert left == ["best"]


def assert_every_utterance_was_seen_once(folder: Path) -> None:
    """In each epoch."""
    seen = Counter((row["epoch"], row["id"]) for row in ledger_of(folder))
    assert seen == Counter((epoch, f"u{i}") for epoch in range(EPOCHS) for i in range(N_CLIPS))


def attempts(folder: Path) -> int:
    """Return how often rank 0 of a run began: each writes a file of its own for TensorBoard."""
    return len(list((folder / "tensorboard").iterdir()))
