"""Sources of three layouts with the same kind of rows, and their shards as `askd prepare` makes them."""

import io
import json
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from askd_ray.config.schema import Recipe
from askd_ray.data.build_shards import ShardBuild
from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.sources import survey
from askd_ray.data.task_runner import TaskRunner
from askd_ray.location import Location

Row = dict[str, Any]


@lru_cache
def clip(seed: int) -> bytes:
    """A WAV file of a tenth to three tenths of a second of noise; every fifth one is too short to be used."""
    seconds = 0.05 if seed % 5 == 4 else 0.1 + 0.02 * (seed % 10)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * 16_000)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def write_sources(folder: Path, rows: Sequence[Row], row_group_size: int = 2) -> list[dict[str, Any]]:
    """Write a manifest, a Parquet file with row groups, and a tar, each with a third of the rows; return the sources.

    A row has the fields of a manifest; ``seed`` stands for its audio, and its number is its default id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = [{"id": str(number), **row} for number, row in enumerate(rows)]
    third = -(-len(rows) // 3)
    _write_manifest(folder, named[:third])
    of_parquet = [{k: v for k, v in row.items() if k != "seed"} for row in named[third : 2 * third]]
    audio = [{"bytes": clip(row["seed"]), "path": "x.wav"} for row in named[third : 2 * third]]
    table = pa.Table.from_pylist([{**row, "audio": a} for row, a in zip(of_parquet, audio, strict=True)], _SCHEMA)
    pq.write_table(table, folder / "rows.parquet", row_group_size=row_group_size)
    _write_tar(folder / "rows.tar", named[2 * third :])
    kinds = {"manifest.jsonl": "manifest", "rows.parquet": "parquet", "rows.tar": "webdataset"}
    return [{"path": str(folder / name), "kind": kind} for name, kind in kinds.items()]


_TEXTS = ("id", "text", "speaker", "split", "language")
_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), ("audio", _AUDIO)])


def _write_manifest(folder: Path, rows: Sequence[Row]) -> None:
    lines: list[str] = []
    for number, row in enumerate(rows):
        (folder / f"{number}.wav").write_bytes(clip(row["seed"]))
        lines.append(json.dumps({k: v for k, v in row.items() if k != "seed"} | {"audio": f"{number}.wav"}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))


def _write_tar(path: Path, rows: Sequence[Row]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            values = json.dumps({k: v for k, v in row.items() if k != "seed"}).encode()
            for name, content in ((f"{number:04d}.wav", clip(row["seed"])), (f"{number:04d}.json", values)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def recipe_of(sources: Sequence[dict[str, Any]], root: Path, kind: str = "reference", **data: Any) -> Recipe:
    """Return a recipe of the sources that allows any share of bad rows and any split to be empty."""
    defaults = {"derive": None, "max_quarantine_share": 1.0, "chars_per_s": None, "dev_share": 0.25, "test_share": 0.25}
    values = {"sources": list(sources), **defaults, **data}
    return Recipe.model_validate(
        {
            "name": "mixed",
            "runs_root": str(root),
            "data": values,
            "targets": {"kind": kind},
            "teacher": {"model": "some/model"},
        }
    )


def shards_of(
    recipe: Recipe, folder: Path, runner: TaskRunner, part_rows: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Write the shards of a recipe through parts of a size; return the files by name, and the counts."""
    (folder / "shards").mkdir(parents=True)
    surveyed = survey(recipe.data.sources, needs_text=recipe.targets.kind != "pseudo")
    build = ShardBuild(recipe, surveyed, CheckedParts(Location.of(folder / "parts")), runner, part_rows)
    counts = build.write(Location.of(folder / "shards"))
    return {file.name: file.read_bytes() for file in sorted((folder / "shards").iterdir())}, counts
