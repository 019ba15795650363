"""Checks that a killed training ends like one without a kill: SIGKILL at random moments of short trainings on Ray.

    python benchmarks/faults.py [--kills N] [--seed N] [--quick] [--json]

A cluster of three nodes on this machine runs `askd distill` with two workers, a Whisper of random weights (two layers
of width 32) and real prompts. Each run kills one thing: a training worker, the driver (then the same command runs
again), or the node (raylet) of a worker. The seed decides what is killed, and when: at the start of the workers, or
after any step. Each run is compared with the plain loop without Ray and without a kill: the bits of weights and
optimizer, and how often the ledger has each utterance in each epoch.

--quick kills twice in one run with one worker: first a worker, then a node. --json prints one line of JSON at the end.
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import one_line_errors
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from labelled_run import write_run
from rich.table import Table
from safetensors.torch import load_file
from speech_rows import clips
from transformers import WhisperConfig, WhisperForConditionalGeneration

import askd_ray
from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.fetch.weights import fetch_weights
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.progress import console
from askd_ray.runs import Run
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.ledger import read_ledger
from askd_ray.train.loop import CHECKPOINTS, LEDGER
from askd_ray.train.track import read_metrics

KINDS = ("worker", "driver", "node")
KILLS, EPOCHS, N_SHARDS, CLIPS_PER_SHARD = 10, 3, 6, 2
STEPS = EPOCHS * N_SHARDS * CLIPS_PER_SHARD // 2  # two micro-batches of one clip each
LAST_KILL = STEPS - 4  # the last step for a kill: the run must not have ended
CPUS_PER_NODE = 2  # enough on one node for both workers and their data tasks, since the other node may be killed
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Kill:
    """What is killed, and after which step; 0 means at the start of the workers."""

    kind: str
    step: int


@dataclass(frozen=True)
class Ending:
    """The end of a run: its seconds, whether the bits are the same, and the lost and doubled rows of its ledger."""

    wall_s: float
    same: bool
    lost: int
    doubled: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(options.kills)]  # all kinds equally often
    runs = [(Kill(kind, rng.randint(0, LAST_KILL)),) for kind in rng.sample(kinds, len(kinds))]
    if options.quick:
        runs = [(Kill("worker", 2), Kill("node", 8))]
    table = Table("killed", "after step", "s", "weights", "lost", "doubled", title=f"{STEPS} steps, killed")
    survived, lost, doubled = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="askd") as folder:  # a short path: Ray creates sockets in it
        recipe = _write_run(Path(folder), workers=1 if options.quick else 2)
        expected = Path(folder) / "undisturbed"
        _run_undisturbed(recipe, expected)
        with _cluster(Path(folder) / "ray") as cluster:
            for number, kills in enumerate(runs):
                ending = _run_disturbed(
                    cluster, recipe.model_copy(update={"name": f"killed-{number}"}), kills, expected
                )
                survived += len(kills) * ending.same
                lost, doubled = lost + ending.lost, doubled + ending.doubled
                what, when = (", ".join(str(getattr(k, name)) for k in kills) for name in ("kind", "step"))
                same = "identical" if ending.same else "DIFFERENT"
                table.add_row(what, when, f"{ending.wall_s:.0f}", same, str(ending.lost), str(ending.doubled))
                console.print(f"{what} killed after step {when}: weights {same}, {ending.wall_s:.0f} s")
    console.print(table)
    n_kills = sum(map(len, runs))
    result = {"survived": survived, "of": n_kills, "lost": lost, "doubled": doubled}
    console.print(f"{survived} of {n_kills} survived")
    if options.json:
        print(json.dumps(result))


def _write_run(root: Path, workers: int) -> Recipe:
    """Write the student, and a run with finished stages before `distill`."""
    real, tokens = load_whisper(str(fetch_weights("tiny.en")))
    shape = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    shape["max_target_positions"] = 64  # a random model does not know when to stop
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**(real.config.to_dict() | shape | heads)))
    model.generation_config = real.generation_config
    model.generation_config.update(alignment_heads=[[1, 0]])
    save_whisper(model, tokens, root / "model")
    recipe = Recipe.model_validate(
        {
            "name": "killed",
            "data_run": "data",
            "data": {"utterances_per_shard": CLIPS_PER_SHARD},
            "runs_root": str(root / "runs"),
            "teacher": {"model": str(root / "model"), "top_k": 8},
            "window": {"padded_share": 0.0},
            "train": {
                "epochs": EPOCHS,
                "checkpoint_steps": 3,
                "optimizer": {"lr": 1e-3},
                "batching": {"utterances": 1, "micro_batches": 2, "shuffle_blocks": 2},
                "workers": {"count": workers},
            },
        }
    )
    write_run(recipe, sorted(clips(None, 60), key=lambda u: (u.duration_s, u.id))[: N_SHARDS * CLIPS_PER_SHARD])
    return recipe


def _run_undisturbed(recipe: Recipe, folder: Path) -> None:
    if recipe.train.workers.count == 1:
        build_loop(recipe, PlainContext(torch.device("cpu")), folder, "undisturbed").run()
        return
    n_workers = recipe.train.workers.count
    mp.spawn(_rank, (n_workers, recipe.model_dump_json(), str(folder)), nprocs=n_workers)


def _rank(rank: int, world_size: int, text: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}.ranks", rank=rank, world_size=world_size)
    context = PlainContext(torch.device("cpu"), rank, world_size)
    build_loop(Recipe.model_validate_json(text), context, Path(folder), "undisturbed").run()
    dist.destroy_process_group()


@contextmanager
def _cluster(folder: Path) -> Generator[Any]:
    """Start a cluster of three nodes, for this process and its child processes; the first node is only the head."""
    package = str(Path(askd_ray.__file__).parents[1])
    os.environ |= {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    from ray.cluster_utils import Cluster  # reads the environment

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CPUS_PER_NODE)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        cluster.shutdown()


def _run_disturbed(cluster: Any, recipe: Recipe, kills: Sequence[Kill], expected: Path) -> Ending:
    """Distil with the kills; raises :class:`AskdError` when the run fails."""
    run, begun = Run(recipe), time.monotonic()
    run.path.mkdir(parents=True)
    file, log = run.path / "given.yaml", run.path / "said.txt"
    file.write_text(dump_recipe(recipe), encoding="utf-8")

    def start() -> psutil.Popen:
        command = [sys.executable, "-m", "askd_ray", "distill", "--recipe", str(file)]
        with log.open("w", encoding="utf-8") as out:
            return psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    driver = start()
    for kill in kills:
        worker = _until(lambda kill=kill, driver=driver: _worker_after(kill.step, run.distill, driver), log)
        if kill.kind == "worker":
            worker.send_signal(signal.SIGKILL)
        elif kill.kind == "driver":
            driver.kill()
            driver.wait()
            driver = start()
        else:
            _kill_node(cluster, worker)
    _until(lambda: driver.poll() is not None, log)
    if driver.returncode != 0:
        raise AskdError(f"the run with {kills} ended with {driver.returncode}: {log.read_text(encoding='utf-8')}")
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=CPUS_PER_NODE)
    seen, expected_seen = _seen(run.distill), _seen(expected)
    lost, doubled = (expected_seen - seen).total(), (seen - expected_seen).total()
    return Ending(time.monotonic() - begun, _bits(run.distill, expected), lost, doubled)


def _until(condition: Callable[[], Any], log: Path) -> Any:
    """Wait until a condition returns a true value, and return the value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AskdError(f"timeout, no progress: {log.read_text(encoding='utf-8')}")


def _worker_after(step: int, folder: Path, driver: psutil.Popen) -> psutil.Process | None:
    """Return a training worker of this cluster if the run has reached a step, else None."""
    if driver.poll() is not None:
        raise AskdError(f"the run ended before it could be killed after step {step}")
    if max((line["step"] for line in read_metrics(folder)), default=0) < step:
        return None
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                return process
        except psutil.Error:  # it has ended in the meantime
            continue
    return None


def _kill_node(cluster: Any, worker: psutil.Process) -> None:
    """Kill the node on which a worker runs."""
    above = {process.pid for process in worker.parents()}
    (node,) = (n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in above)
    cluster.remove_node(node, allow_graceful=False)


def _seen(folder: Path) -> Counter[tuple[int, str]]:
    return Counter((row["epoch"], row["id"]) for row in read_ledger(folder / LEDGER).to_pylist())


def _bits(folder: Path, expected: Path) -> bool:
    """Return whether two runs ended with the same weights and optimizer, bit by bit."""
    ends = [next((f / CHECKPOINTS).glob(f"step-{STEPS:08d}"), None) for f in (folder, expected)]
    if None in ends:
        return False
    for file in ("student", "optimizer"):
        actual, other = (load_file(end / f"{file}.safetensors") for end in ends if end is not None)
        if actual.keys() != other.keys() or not all(torch.equal(actual[name], other[name]) for name in other):
            return False
    return True


if __name__ == "__main__":
    one_line_errors.run(main)
