"""Ray's overhead per training step: the loop in a Ray Train worker compared with a process without Ray.

    python benchmarks/ray_overhead.py [--data FOLDER] [--clips N] [--epochs N] [--quick] [--json]

Whisper tiny.en on real clips with cached soft labels, batches in memory. Both processes run the loop of
askd_ray/train/loop.py, and take their steps in turn: each batch is handed over when this script says so, so that they
never compute at the same time, and meet the same load. A step lasts until the loop asks for the next batch. Ray's
workers are as nice as the other process here (by default Ray gives them a niceness of 15).

--data takes a folder of Parquet files (Hugging Face convention); without it, the IVR prompts. --json prints one line of
JSON last.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import one_line_errors
import torch
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, Sampler, steps_from
from askd_ray.data.schema import Batch
from askd_ray.fetch.weights import fetch_weights
from askd_ray.progress import bar, console
from askd_ray.torch_setup import use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader

KINDS = ("plain", "ray")
KEY = b"steps in turn"
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", help=argparse.SUPPRESS)  # the script starts itself with this option
    options = parser.parse_args()
    if options.plain:
        _run_plain(json.loads(options.plain))
        return
    use_threads()
    n_clips, epochs = (24, 2) if options.quick else (options.clips, options.epochs)
    with tempfile.TemporaryDirectory() as root:
        values = {
            "name": "steps",
            "runs_root": root,
            "teacher": {"model": str(fetch_weights("tiny.en"))},
            "train": {"epochs": epochs, "checkpoint_steps": 1_000_000},
        }
        recipe = Recipe.model_validate(values)
        write_run(recipe, clips(options.data, n_clips))
        sampler = length_grouped_sampler(make_batch_loader(recipe, n_mels=80).rows(), recipe)
        n_steps = sum(1 for _ in steps_from(sampler, DataCursor()))
        with Listener(str(Path(root) / "socket"), "AF_UNIX", authkey=KEY) as listener:
            config = {"recipe": recipe.model_dump(mode="json"), "root": root, "socket": listener.address}
            process_settings, times = dict[str, dict[str, int]](), {kind: list[float]() for kind in KINDS}
            turns = threading.Thread(target=_give_turns, args=(listener, n_steps, process_settings, times), daemon=True)
            turns.start()
            plain = subprocess.Popen([sys.executable, __file__, "--plain", json.dumps(config)])
            _run_ray(config)
            plain.wait()
            turns.join()
    ratios = [ray / plain for ray, plain in zip(times["ray"], times["plain"], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    table = Table(title=f"{len(ratios)} steps of each, in turn")
    for column in ("loop", "median step", "torch threads", "niceness"):
        table.add_column(column, justify="right")
    for kind in KINDS:
        table.add_row(
            kind, f"{1000 * median(times[kind]):.0f} ms", *(str(value) for value in process_settings[kind].values())
        )
    console.print(table)
    console.print(f"Ray over plain: {median(ratios):.3f} (half of the steps: {low:.3f} to {high:.3f})")
    if process_settings["ray"] != process_settings["plain"]:
        raise SystemExit("not alike: torch threads or niceness differ")
    result = {
        "ray_over_plain": round(median(ratios), 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "step_s": {kind: round(median(times[kind]), 4) for kind in KINDS},
        "steps": len(ratios),
    }
    if options.json:
        print(json.dumps(result))


def _give_turns(
    listener: Listener, n_steps: int, process_settings: dict[str, dict[str, int]], times: dict[str, list[float]]
) -> None:
    """Let both loops step alternately; record each loop's thread settings, and the seconds of its steps."""
    loops: dict[str, Connection] = {}
    for _ in KINDS:
        loop = listener.accept()
        words = json.loads(loop.recv_bytes())
        kind = words.pop("kind")
        loops[kind], process_settings[kind] = loop, words
    with bar("steps", n_steps, "step") as progress:
        for number in range(n_steps - 1):
            for kind in KINDS if number % 2 else reversed(KINDS):
                loops[kind].send_bytes(b"go")
                took = float(loops[kind].recv_bytes())
                if number >= WARM_UP:
                    times[kind].append(took)
            progress.advance()
        for kind in KINDS:  # the last step also scores dev, so it is not measured
            loops[kind].send_bytes(b"go")
        progress.advance()


def _handed_over(kind: str, socket: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield each batch when it is this loop's turn, and report the time until the loop asks for the next."""
    ready = list(batches)
    with Client(socket, "AF_UNIX", authkey=KEY) as turns:
        words = {"kind": kind, "threads": torch.get_num_threads(), "niceness": os.nice(0)}
        turns.send_bytes(json.dumps(words).encode())
        for batch in ready:
            turns.recv_bytes()
            begun = time.perf_counter()
            yield batch
            turns.send_bytes(str(time.perf_counter() - begun).encode())


def _run_plain(config: dict[str, Any]) -> None:
    class Plain(PlainContext):
        def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
            return _handed_over("plain", config["socket"], super().batches(loader, sampler, cursor))

    context = Plain(torch.device("cpu"))
    build_loop(Recipe.model_validate(config["recipe"]), context, Path(config["root"]) / "plain", "plain").run()


def _run_ray(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray_overhead import ray_worker  # imported by name, so that Ray's worker can import it

    from askd_ray.ray_cluster import connect, disconnect

    os.environ["RAY_worker_niceness"] = str(os.nice(0))
    connect()
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            storage_path=str(Path(config["root"]) / "storage"),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()
    disconnect()


def ray_worker(config: dict[str, Any]) -> None:
    """Run the loop in a Ray Train worker."""
    from askd_ray.train.ray_trainer import RayTrainContext

    class InRay(RayTrainContext):
        def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
            made = PlainContext(self.device).batches(loader, sampler, cursor)
            return _handed_over("ray", config["socket"], made)

    build_loop(Recipe.model_validate(config["recipe"]), InRay(use_gpu=False), Path(config["root"]) / "ray", "ray").run()


if __name__ == "__main__":
    one_line_errors.run(main)
