"""Shards do not depend on how the sources are divided, and a killed prepare continues."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_sources import Row, recipe_of, shards_of, write_sources

from askd_ray.config.schema import Recipe
from askd_ray.data import build_shards, repeats
from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.prepare import prepare
from askd_ray.data.schema import SPLITS
from askd_ray.data.shards import read_utterances
from askd_ray.data.task_runner import LocalRunner
from askd_ray.errors import AskdError
from askd_ray.runs import Run

ROWS = st.fixed_dictionaries(
    {
        "id": st.sampled_from([str(i) for i in range(12)]),
        "seed": st.integers(0, 12),
        "speaker": st.sampled_from(["", "alice", "carol", "erin", "dave"]),
        "text": st.sampled_from(["", "words", "other words", "<unk>"]),
        "split": st.sampled_from(["", "train", "dev", "test"]),
        "language": st.sampled_from(["en", "german"]),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)  # it decodes audio and writes files
@given(
    st.lists(ROWS, max_size=24),
    st.sampled_from(["reference", "pseudo"]),
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from([None, 0.4 / 3600]),
)
def test_size_of_parts_and_number_of_threads_change_nothing(
    rows: list[Row], kind: str, part_rows: int, size: int, max_dev_hours: float | None
):
    with tempfile.TemporaryDirectory() as root:
        sources = write_sources(Path(root) / "clips", rows)
        settings = {"utterances_per_shard": size, "max_dev_hours": max_dev_hours}
        recipe = recipe_of(sources, Path(root), kind, **settings)
        whole = shards_of(recipe, Path(root) / "whole", LocalRunner(1), 1000)
        parts = shards_of(recipe, Path(root) / "parts", LocalRunner(3), part_rows)
    assert parts == whole
    assert whole[1]["read"] == len(rows)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=20), st.integers(1, 7), st.integers(1, 9))
def test_the_first_row_with_an_id_and_an_audio_is_kept(
    rows: list[tuple[int, int]], part_rows: int, rows_per_bucket: int
):
    """The same as a set of all ids and a set of all audio, row by row."""
    ids, audio, kept = set[int](), dict[int, int](), list[str]()
    set_aside: list[tuple[str, str, str]] = []
    for row_id, seed in rows:
        if row_id in ids:
            set_aside.append((str(row_id), "duplicate id", ""))
        elif seed % 5 == 4:
            set_aside.append((str(row_id), "shorter than 0.1 s", "0.05 s"))
        elif seed in audio:
            set_aside.append((str(row_id), "duplicate audio", f"the same as {audio[seed]}"))
        else:
            audio[seed] = row_id
            kept.append(str(row_id))
        ids.add(row_id)
    given_rows = [{"id": str(i), "seed": s, "text": "words", "split": "train"} for i, s in rows]
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "MAX_ROWS", rows_per_bucket)
        recipe = recipe_of(write_sources(Path(root) / "clips", given_rows), Path(root), test_share=0.0, dev_share=0.0)
        files, _ = shards_of(recipe, Path(root) / "out", LocalRunner(2), part_rows)
        shards = Path(root) / "out" / "shards"
        found = [u.id for u in read_utterances_of(shards)] if len(files) > 1 else []
    lines = [json.loads(line) for line in files["quarantine.jsonl"].splitlines()]
    assert [(line["id"], line["reason"], line["detail"]) for line in lines] == set_aside
    assert found == kept


def read_utterances_of(shards: Path) -> list[Any]:
    from askd_ray.location import Location

    return read_utterances(Location.of(shards), "train")


def many_files(root: Path, n_files: int = 8, **data: Any) -> Recipe:
    """Return a recipe of several Parquet files, each a part, with rows that repeat those of other files."""
    sources: list[dict[str, Any]] = []
    for number in range(n_files):
        rows = [{"id": f"{i % 13}-{number * i % 4}", "seed": 17 * number + i, "text": "words"} for i in range(27)]
        folder = root / "clips" / str(number)
        sources.append(write_sources(folder, [{"speaker": f"s{row['seed'] % 11}", **row} for row in rows], 100)[1])
    return recipe_of(sources, root / "runs", utterances_per_shard=3, dev_share=0.2, test_share=0.2, **data)


SLOW_PREPARE = """
import sys, time
from askd_ray.config.schema import Recipe
from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.prepare import prepare
write = CheckedParts.write
def slowly(self, *arguments):
    write(self, *arguments)
    time.sleep(0.3)
CheckedParts.write = slowly
prepare(Recipe.model_validate_json(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_prepare_continues_with_the_parts_that_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = many_files(tmp_path)
    run = Run(recipe)
    parts = run.path / "parts"
    process = subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, recipe.model_dump_json()])
    give_up = time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    process.kill()
    process.wait()
    n_checked = len(list(parts.glob("*.parquet")))
    assert 3 <= n_checked < 8 and run.record("prepare") is None
    (parts / "0123456789abcdef.arrow").write_bytes(b"half of a part")  # its rows file, the last one, is missing
    assert list(run.path.glob(".shards.*.tmp")), "the kill came before the shards began"

    written: list[str] = []
    write = CheckedParts.write
    monkeypatch.setattr(CheckedParts, "write", lambda *a: (written.append(a[1]), write(*a))[1])
    result = prepare(recipe)
    assert len(written) == 8 - n_checked
    assert sorted(path.name for path in run.path.iterdir()) == ["prepare.json", "recipe.yaml", "shards"]

    (parts / "left").mkdir(parents=True)  # as by a kill after the record
    assert prepare(recipe) == result and len(written) == 8 - n_checked and not parts.exists()

    undisturbed = recipe.model_copy(update={"name": "undisturbed"})
    assert prepare(undisturbed) == result
    files = {file.name: file.read_bytes() for file in run.shards.files()}
    assert files == {file.name: file.read_bytes() for file in Run(undisturbed).shards.files()}


def test_parts_of_an_error_are_used_again_and_force_checks_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = many_files(tmp_path, 3)
    last = Path(recipe.data.sources[-1].path)
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 3] + b"x" * (len(content) // 3) + content[2 * len(content) // 3 :])
    written: list[str] = []
    write = CheckedParts.write
    monkeypatch.setattr(CheckedParts, "write", lambda *a: (written.append(a[1]), write(*a))[1])
    with pytest.raises(AskdError, match="is damaged"):
        prepare(recipe)
    assert len(written) == 3
    last.write_bytes(content)
    result = prepare(recipe)
    assert len(written) == 4
    assert prepare(recipe, force=True) == result and len(written) == 7


def test_parts_of_other_settings_are_not_used(tmp_path: Path):
    recipe = many_files(tmp_path, 2)
    counts = [
        shards_of(recipe_of([s.model_dump() for s in recipe.data.sources], tmp_path, **data), tmp_path / name, *HERE)[1]
        for name, data in {"a": {}, "b": {"min_duration_s": 0.01}}.items()
    ]
    assert counts[0]["quarantined"].keys() - counts[1]["quarantined"].keys() == {"shorter than 0.1 s"}


HERE = (LocalRunner(1), build_shards.PART_ROWS)


def test_a_split_that_no_row_of_a_source_has_is_refused_over_all_parts(tmp_path: Path):
    rows = [{"seed": 5 * i, "text": "words", "split": "dev"} for i in range(9)]
    sources = write_sources(tmp_path / "clips", rows)
    for source in sources:
        found = recipe_of([source | {"split": "ood"}], tmp_path)
        with pytest.raises(AskdError, match="no row of the split 'ood': there is 'dev'"):
            shards_of(found, tmp_path / Path(source["path"]).name, LocalRunner(1), 2)
    _, counts = shards_of(recipe_of([sources[1] | {"split": "dev"}], tmp_path), tmp_path / "dev", LocalRunner(1), 2)
    assert counts["utterances"] == {split: 3 * (split == "dev") for split in SPLITS}
