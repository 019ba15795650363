"""Data on a real S3 server: the stages read and write there, and training gets the same batches as from a folder."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from askd_ray.config.schema import Recipe
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.prepare import prepare
from askd_ray.data.ray_stream import ray_batches
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import SPLITS, Batch
from askd_ray.data.shards import read_utterances
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.runs import Run
from askd_ray.targets.ray_label import label
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.ray_trainer import check_inputs


@pytest.fixture
def here(labelled: Recipe, tmp_path: Path) -> Recipe:
    """A recipe of the same teacher with a folder as its source."""
    rows = []
    (tmp_path / "clips").mkdir()
    for split in ("train", "dev"):
        for u in read_utterances(Run(labelled).shards, split):
            (tmp_path / "clips" / u.path).write_bytes(u.audio)
            rows.append({"audio": u.path, "text": f"{u.text} {u.id}", "id": u.id})
    (tmp_path / "clips" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / "clips")}]
    # Tones, with texts too long for their duration.
    data = {"sources": sources, "utterances_per_shard": 4, "dev_share": 0.3, "chars_per_s": None}
    values = labelled.model_dump(mode="json")
    return Recipe.model_validate({**values, "name": "here", "runs_root": str(tmp_path / "runs"), "data": data})


def same(one: Batch, other: Batch) -> bool:
    return one.ids == other.ids and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Batch)
        if field.name != "ids"
    )


@pytest.mark.full
@pytest.mark.slow
def test_batches_from_s3_equal_local_batches(here: Recipe, s3: Callable[[str], str], ray_session: None, tmp_path: Path):
    for file in (tmp_path / "clips").iterdir():
        (Location.of(s3("clips")) / file.name).write_bytes(file.read_bytes())
    source = here.data.sources[0].model_copy(update={"path": s3("clips")})
    data = here.data.model_copy(update={"sources": (source,)})
    there = here.model_copy(update={"name": "there", "data_root": s3("runs"), "data": data})
    prepared, labels = [prepare(r) for r in (here, there)], [label(r) for r in (here, there)]
    assert prepared[0] == prepared[1] and labels[0] == labels[1] and labels[1]["labelled"] > 6
    assert [f.name for f in Run(there).path.iterdir()] == ["recipe.yaml"]
    assert {f.name for f in Run(there).labels.files()} == {f.name for f in Run(here).labels.files()}

    streams = [make_batch_loader(r, n_mels=80) for r in (here, there)]
    tasks = [list(tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1)) for stream in streams]
    assert [str(task) for task in tasks[0]] == [str(task) for task in tasks[1]]
    batches = [
        [batch for task in tasks[0] for batch in streams[0].batches(task)],
        [batch for task in tasks[1] for batch in streams[1].batches(task)],
        list(ray_batches(streams[1], length_grouped_sampler(streams[1].rows(), streams[1]), DataCursor())),
    ]
    assert sum(len(batch.ids) for batch in batches[0]) == 2 * labels[0]["labelled"]
    for others in batches[1:]:
        assert len(others) == len(batches[0]) and all(map(same, batches[0], others))

    check_inputs(there)
    loops = [build_loop(r, PlainContext(torch.device("cpu")), tmp_path / r.name, "key") for r in (here, there)]
    summaries = [loop.run() for loop in loops]
    assert summaries[0]["dev_wer"] == summaries[1]["dev_wer"]
    weights = zip(*(loop.objects.student.state_dict().values() for loop in loops), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_truncated_shard_on_s3_is_named(labelled: Recipe, s3: Callable[[str], str]):
    there = labelled.model_copy(update={"data_root": s3("runs")})
    for place in (Run(labelled).shards, Run(labelled).labels):
        for file in place.files():
            (Run(there).data_path / place.name / file.name).write_bytes(file.read_bytes())
    stream = make_batch_loader(there, n_mels=80)
    tasks = list(tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1))
    shard = Run(there).shards.files("train-*")[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    for read in (stream.rows, lambda: [list(stream.batches(task)) for task in tasks]):
        with pytest.raises(AskdError, match=rf"^s3://b\w+/runs/tiny/shards/{shard.name} is damaged") as caught:
            read()
        assert "\n" not in str(caught.value) and "mysecret" not in str(caught.value)


def test_missing_shards_on_s3(labelled: Recipe, s3: Callable[[str], str]):
    there = labelled.model_copy(update={"data_root": s3("nothing")})
    for split in SPLITS:
        with pytest.raises(
            AskdError, match=rf"^no {split} shards in s3://b\w+/nothing/tiny/shards: run `askd prepare`"
        ):
            read_utterances(Run(there).shards, split)
