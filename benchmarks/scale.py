"""Planning, memory and CPUs for loading at the scale of a cluster: a synthetic row index, and Ray's own coordinator.

    python benchmarks/scale.py [--hours N] [--quick] [--json]

It writes a row index for N hours of speech in clips of 7.5 s (a million hours: 480 million rows and 12 GB on disk), and
measures, each in a fresh process: the rows a second that one core plans; the time from the start of the process to the
first batch of the last of 64 ranks, with its audio decoded; and the private memory of that process after it. All blocks
of the index are stored in one real shard, so that audio and labels can be read. The memory of dev is what one rank
alone holds of the ten hours that data.max_dev_hours keeps, with real clips; of N ranks each holds a part.

The CPUs for loading are those that Ray's coordinator reserves for Ray Data on nodes with 8 GPUs and 64 CPUs, after
the training workers of recipe gpu_base: with one pipeline for the run, and with one for each rank.
--quick takes 10,000 hours, --json prints one line of JSON at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import one_line_errors
from rich.table import Table
from speech_rows import clips

from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.dev import read_dev
from askd_ray.data.labels import ARRAYS, SoftLabels, write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.row_index import ROW, IndexBatch, open_row_index, record_batch, write_row_index
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import BLOCK_ROWS, to_table, write_table
from askd_ray.location import Location
from askd_ray.progress import bar, console

CLIP_S = 7.5
HOURS, QUICK_HOURS = 1_000_000, 10_000
BLOCKS_PER_PART = 4_096
RANKS, GPUS_PER_NODE, CPUS_PER_NODE = (8, 64, 256), 8, 64
MEASURED_RANKS = 64
PLANNED_GROUPS = 60
STAMP, TOP_K = "synthetic", 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=HOURS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, folder = options.measure
        print(json.dumps({"plan": _plan, "first_batch": _first_batch, "dev": _dev}[what](Path(folder))))
        return
    hours = QUICK_HOURS if options.quick else options.hours
    name = f"{hours // 1_000}k_hours" if hours < 1_000_000 else f"{hours // 1_000_000}m_hours"
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        n_rows, n_bytes = _write(folder, hours)
        planned, first, dev = (_in_process(what, folder) for what in ("plan", "first_batch", "dev"))
    cpus = {n: (_loader_cpus(n, pipelines=1), _loader_cpus(n, pipelines=n)) for n in RANKS}
    scores = {
        "plan_rows_per_s": round(planned["rows_per_s"]),
        "index_bytes_per_row": round(n_bytes / n_rows, 2),
        f"first_batch_s_{name}": round(first["seconds"], 1),
        f"rank_memory_gb_{name}": round(first["private_gb"], 3),
        f"dev_memory_gb_{name}": round(dev["gb"], 3),
        **{f"loader_cpus_per_rank_{n}": cpus[n][0] for n in RANKS},
    }
    table = Table(title=f"{hours:,} hours: {n_rows:,} rows, an index of {n_bytes / 1e9:.2f} GB", show_header=False)
    table.add_row("rows planned a second, one core", f"{planned['rows_per_s']:,.0f}")
    table.add_row("padding of audio and tokens", f"{planned['audio']:.1%}, {planned['tokens']:.1%}")
    table.add_row(f"first batch of rank {MEASURED_RANKS - 1}", f"{first['seconds']:.1f} s")
    table.add_row("private memory of its process", f"{first['private_gb']:.2f} GB")
    table.add_row(f"memory of {dev['hours']:.1f} h of dev on one rank", f"{dev['gb']:.2f} GB")
    for n, (one, many) in cpus.items():
        table.add_row(f"loader CPUs a rank, {n} ranks", f"{one:g} (a pipeline for each rank: {many:g})")
    console.print(table)
    if options.json:
        print(json.dumps(scores))


def _write(folder: Path, hours: int) -> tuple[int, int]:
    """Write a real shard with labels, and an index whose blocks all lie in it; return its rows and bytes."""
    speech = (clips(None, BLOCK_ROWS) * BLOCK_ROWS)[:BLOCK_ROWS]
    write_table(folder / "shards" / "train-00000.parquet", to_table(speech), BLOCK_ROWS)
    write_labels(folder / "labels" / "train-00000.parquet", [_label(u) for u in speech], {"top_k": TOP_K})
    n_blocks = round(hours * 3_600 / CLIP_S / BLOCK_ROWS)
    with bar("index", n_blocks, "blocks") as progress:

        def parts() -> Iterator[IndexBatch]:
            rng = np.random.default_rng(0)
            for first in range(0, n_blocks, BLOCKS_PER_PART):
                n = min(BLOCKS_PER_PART, n_blocks - first)
                yield ["train-00000.parquet"] if first == 0 else [], _part(rng, n), ["speech"], ()
                progress.advance(n)

        write_row_index(Location.of(folder / "labels"), parts(), STAMP)
    return n_blocks * BLOCK_ROWS, (folder / "labels" / "index.arrow").stat().st_size


def _part(rng: np.random.Generator, n_blocks: int) -> Any:
    n = n_blocks * BLOCK_ROWS
    seconds = rng.uniform(1.0, 2 * CLIP_S - 1.0, n)
    rows = np.zeros(n, ROW)
    rows["key"] = rng.integers(0, 1 << 63, n, dtype=np.uint64)
    rows["samples"] = seconds * 16_000
    rows["teacher_loss"] = rng.random(n, np.float32)
    rows["tokens"] = 2 + 3 * seconds
    rows["row"] = np.arange(n) % BLOCK_ROWS
    offsets = np.arange(0, n + 1, BLOCK_ROWS, dtype=np.int32)
    return record_batch(np.zeros(n_blocks, np.uint32), np.zeros(n_blocks, np.uint32), offsets, rows)


def _label(utterance: Utterance) -> SoftLabels:
    n = 20
    arrays = {name: np.zeros((n, TOP_K) if name.startswith("top") else n, dtype) for name, dtype in ARRAYS.items()}
    arrays["states"] = np.zeros((n, 0, 0), np.float16)
    return SoftLabels(utterance.content_hash, (1, 2), np.ones(n, np.int32), "", "", **arrays)


def _recipe() -> Recipe:
    recipe = load_recipe("gpu_base", [])
    batching = recipe.train.batching.model_copy(update={"micro_batches": MEASURED_RANKS})
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batching": batching})})


def _plan(folder: Path) -> dict[str, float]:
    sampler = length_grouped_sampler(open_row_index(Location.of(folder / "labels"), STAMP), _recipe())
    groups = sampler.groups(DataCursor())
    next(groups)  # shuffles the blocks
    begun, n_rows = time.process_time(), 0
    for _, group in zip(range(PLANNED_GROUPS), groups, strict=False):
        n_rows += sum(len(queue.rows) for queue in group.queues)
    rate = n_rows / (time.process_time() - begun)
    return {"rows_per_s": rate, **vars(sampler.padding())}


def _first_batch(folder: Path) -> dict[str, float]:
    recipe = _recipe()
    loader = BatchLoader(
        shards=Location.of(folder / "shards"),
        labels=Location.of(folder / "labels"),
        label_key={"top_k": TOP_K},
        n_mels=80,
        teacher_n_mels=0,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment.model_copy(update={"noise": recipe.augment.noise.model_copy(update={"share": 0.0})}),
        seed=recipe.seed,
    )
    sampler = length_grouped_sampler(open_row_index(loader.labels, STAMP), recipe)
    task = next(tasks_from(sampler, DataCursor(), MEASURED_RANKS - 1, MEASURED_RANKS))
    first = next(loader.batches(replace(task, batches=task.batches[:1])))
    assert first.ids
    return {"private_gb": _private_bytes() / 1e9}


def _dev(folder: Path) -> dict[str, float]:
    """Write dev of the length that a recipe keeps, and read it as a rank does that is alone."""
    speech = [replace(clip, split="dev") for clip in clips(None, BLOCK_ROWS)]
    hours = _recipe().data.max_dev_hours or 0.0
    n_shards = round(hours * 3_600 / sum(clip.duration_s for clip in speech))
    shards = folder / "dev"
    for number in range(n_shards):
        some = [replace(clip, id=f"{clip.id}-{number}") for clip in speech]
        write_table(shards / f"dev-{number:05d}.parquet", to_table(some), BLOCK_ROWS)
    before = _private_bytes()
    dev = read_dev(Location.of(shards), Location.of(folder / "labels"), {"top_k": TOP_K})
    gb = (_private_bytes() - before) / 1e9
    return {"gb": gb, "hours": sum(clip.duration_s for clip in dev.clips) / 3_600}


def _private_bytes() -> int:
    """Return the memory that only this process uses; clean pages of a mapped file are the system's file cache."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1_024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))


def _in_process(what: str, folder: Path) -> dict[str, float]:
    begun = time.monotonic()
    command = [sys.executable, __file__, "--measure", what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"seconds": time.monotonic() - begun} | json.loads(done.stdout.splitlines()[-1])


def _loader_cpus(n_ranks: int, pipelines: int) -> float:
    """Return the CPUs a rank that Ray's coordinator reserves for the pipeline with the fewest."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.data._internal.cluster_autoscaler.default_cluster_autoscaler_v2 import STANDARD_RESOURCE_TYPES

    node = {"CPU": CPUS_PER_NODE, "GPU": GPUS_PER_NODE, "memory": 2e12, "object_store_memory": 5e11}
    n_nodes = -(-n_ranks // GPUS_PER_NODE)
    nodes = [{"Alive": True, "NodeID": f"node-{i}", "Resources": dict(node)} for i in range(n_nodes)]
    actor = coordinator._AutoscalingCoordinatorActor(time.time, lambda *_, **__: None, lambda: nodes)
    worker = {"CPU": _recipe().train.workers.cpus, "GPU": 1}
    actor.request_resources("train", [worker] * n_ranks, 3_600, priority=coordinator.ResourceRequestPriority.HIGH)
    names = [f"data-{i}" for i in range(pipelines)]
    for name in names:
        actor.request_resources(name, [], 3_600, request_remaining=STANDARD_RESOURCE_TYPES)
    reserved = [sum(of.get("CPU", 0) for of in actor.get_reserved_resources(name).values()) for name in names]
    return round(min(reserved) * (1 if pipelines > 1 else 1 / n_ranks), 2)


if __name__ == "__main__":
    one_line_errors.run(main)
