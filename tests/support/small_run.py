"""A run whose student is the untrained teacher: what export and evaluate need, without a training."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import SPLITS, Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.runs import Run

N_PER_SPLIT = 4


def utterances(speech: Path, n: int) -> list[Utterance]:
    """Return ``n`` real prompts of one to four seconds, spread over the set."""
    found = [(row, soundfile.info(speech / row["audio"]).duration) for row in manifest_rows(speech)[::5]]
    fitting = [(row, s) for row, s in found if 1.0 < s < 4.0][:n]
    assert len(fitting) == n
    return [
        Utterance(
            id=row["audio"],
            audio=(speech / row["audio"]).read_bytes(),
            path=row["audio"],
            text=row["text"],
            duration_s=duration_s,
            speaker="",
            language="en",
            domain="ivr",
            split="test",
            licence="CC-BY-SA-3.0",
        )
        for row, duration_s in fitting
    ]


def write_manifest(folder: Path, speech: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write a manifest of prompts, with their paths as absolute paths; return its folder."""
    folder.mkdir()
    lines = [json.dumps({**row, "audio": str(speech / row["audio"])}) + "\n" for row in rows]
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def manifest_rows(speech: Path) -> list[dict[str, Any]]:
    """Return the rows of the set's manifest."""
    return [json.loads(line) for line in (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def small_run(root: Path, speech: Path, **settings: object) -> Run:
    """Write train, dev and test shards of a few real prompts and return their run."""
    recipe = Recipe.model_validate({"name": "small", "runs_root": str(root), **settings})
    run = Run(recipe)
    clips = utterances(speech, 3 * N_PER_SPLIT)
    for number, split in enumerate(SPLITS):
        rows = [replace(u, split=split) for u in clips[number * N_PER_SPLIT : (number + 1) * N_PER_SPLIT]]
        write_table(run.shards / f"{split}-00000.parquet", to_table(rows))
    return run


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with changes."""
    inner = {k: merged(values[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(values[k], dict)}
    return values | changes | inner


def with_objective(recipe: Recipe, objective: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    """The recipe with another objective, and with changes in other sections."""
    values = recipe.model_dump(mode="json")
    for name, changes in sections.items():
        values[name] = merged(values[name], changes)
    return Recipe.model_validate({**values, "objective": objective})
