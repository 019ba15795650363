"""How fast does `askd prepare` check rows on Ray, and what does its driver hold in memory for a row?

    python benchmarks/prepare_rows.py [--rows N] [--rounds N] [--quick] [--json]

The data: a Parquet file of clips of noise as FLAC, half a second to four seconds, in row groups of 256; one row in 50
repeats an id or a clip. In each round one process with up to four threads (what small data use) and Ray, with tasks of
one CPU, write the same shards, which must be equal bit by bit. On two cores Ray has little to win: its tasks also pay
for their start and for the way through files. Rates include the shards, but no derived clips.

bytes_per_row_driver is what the driver holds when all parts are checked and counted and the shards are planned
(objects made by this package, by tracemalloc): the growth from a third of the rows to all rows on Ray, by row. It
decides how many rows a driver can prepare. --json prints one line of JSON last.
"""

import argparse
import hashlib
import io
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import one_line_errors
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from askd_ray.config.schema import Recipe
from askd_ray.data.build_shards import ShardBuild
from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.ray_prepare import RayRunner
from askd_ray.data.shard_plan import WriteShard
from askd_ray.data.sources import survey
from askd_ray.data.task_runner import LocalRunner, TaskRunner
from askd_ray.location import Location
from askd_ray.progress import Table, console
from askd_ray.ray_cluster import disconnect
from askd_ray.torch_setup import n_cores

ROW_GROUP = 256
REPEATS = 50  # one row in so many repeats an earlier one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n_rows, rounds = (2_100, 1) if options.quick else (options.rows, options.rounds)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        recipe, small = (_recipe(folder, n, f"{n}.parquet") for n in (n_rows, n_rows // 3))
        runners: dict[str, TaskRunner] = {"one process": LocalRunner(min(4, n_cores())), "Ray": RayRunner()}
        _build(small, runners["Ray"], folder / "warm-up")
        rates: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(rounds):
            hashes: set[str] = set()
            for name, runner in list(runners.items())[:: (-1) ** number]:
                begun = time.perf_counter()
                hashes.add(_build(recipe, runner, folder / f"{name}-{number}"))
                rates[name].append(n_rows / (time.perf_counter() - begun))
            assert len(hashes) == 1, "the shards differ"
        held = [_held_bytes(some, runners["Ray"], folder / f"memory-{n}") for n, some in enumerate((small, recipe))]
        disconnect()
    _show(rates, n_rows, rounds)
    per_row = (held[1] - held[0]) / (n_rows - n_rows // 3)
    console.print(f"driver: {per_row:.1f} bytes a row ({held[0]} and {held[1]} bytes)")
    if options.json:
        ratios = [ray / one for ray, one in zip(rates["Ray"], rates["one process"], strict=True)]
        result = {
            "rows_per_s": round(median(rates["Ray"]), 1),
            "vs_one_process": round(median(ratios), 2),
            "bytes_per_row_driver": round(per_row, 1),
            "rows": n_rows,
            "cores": n_cores(),
        }
        print(json.dumps(result))


def _recipe(folder: Path, n_rows: int, name: str) -> Recipe:
    """Write a Parquet file of clips of noise, and return a recipe of it."""
    noise = np.random.default_rng(0).normal(0.0, 0.1, 1 << 22).astype(np.float32)
    draws = np.random.default_rng(1)
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("speaker", pa.string()), ("audio", pa.binary())])
    with pq.ParquetWriter(folder / name, schema, compression="none") as writer:
        for start in range(0, n_rows, ROW_GROUP):
            rows: list[dict[str, object]] = []
            for number in range(start, min(n_rows, start + ROW_GROUP)):
                source = number // 2 if number % REPEATS == 0 else number
                length = 8_000 + source * 7919 % 56_000
                begin = source * 104_729 % (len(noise) - length)
                file = io.BytesIO()
                soundfile.write(file, noise[begin : begin + length], 16_000, format="FLAC")
                row_id = str(number if number % (2 * REPEATS) else source)
                speaker = f"s{draws.integers(0, 1000)}"
                rows.append({"id": row_id, "text": "words", "speaker": speaker, "audio": file.getvalue()})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP)
    source = {"path": str(folder / name), "kind": "parquet"}
    data = {"sources": [source], "chars_per_s": None, "derive": None}
    return Recipe.model_validate({"name": "rows", "data": data, "teacher": {"model": "some/model"}})


def _build(recipe: Recipe, runner: TaskRunner, folder: Path) -> str:
    """Write the shards of a recipe; return a hash of all files."""
    shards = folder / "shards"
    shards.mkdir(parents=True)
    parts = CheckedParts(Location.of(folder / "parts"))
    ShardBuild(recipe, survey(recipe.data.sources), parts, runner).write(Location.of(shards))
    sha = hashlib.sha256()
    for file in sorted(shards.iterdir()):
        sha.update(file.name.encode() + file.read_bytes())
    return sha.hexdigest()


class _Measured:
    """A runner that measures the memory of this process when shards are about to be written."""

    is_local = False

    def __init__(self, runner: TaskRunner):
        self.threads, self.held_bytes = runner.threads, 0
        self._runner = runner

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], memory_mb: int = 512, local_threads: int = 1
    ) -> Iterator[Any]:
        if isinstance(function, WriteShard):
            traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/askd_ray/*")])
            self.held_bytes = sum(trace.size for trace in traces.traces)
        yield from self._runner.map(function, items, memory_mb, local_threads)


def _held_bytes(recipe: Recipe, runner: TaskRunner, folder: Path) -> int:
    """Return the memory that this package's objects have when the shards are planned."""
    measured = _Measured(runner)
    tracemalloc.start()
    _build(recipe, measured, folder)
    tracemalloc.stop()
    return measured.held_bytes


def _show(rates: dict[str, list[float]], n_rows: int, rounds: int) -> None:
    table = Table("rows/s", "median", "min", "max", title=f"{n_rows} rows, {rounds} rounds on {n_cores()} cores")
    for name, values in rates.items():
        table.add_row(name, *(f"{value:.0f}" for value in (median(values), min(values), max(values))))
    console.print(table)


if __name__ == "__main__":
    one_line_errors.run(main)
