import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from small_run import utterances
from tiny_run import label_of

from askd_ray.config.schema import Recipe
from askd_ray.data import ray_stream
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.ray_stream import configure, ray_batches
from askd_ray.data.sampler import DataCursor, Sampler, steps_from, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.data.shards import to_table, write_table
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.ray_errors import user_error


@pytest.fixture
def loader(speech: Path, tmp_path: Path) -> BatchLoader:
    """The loader of three shards with four clips each."""
    clips = utterances(speech, 12)
    for number in range(3):
        part = clips[4 * number : 4 * number + 4]
        write_table(tmp_path / "shards" / f"train-{number:05d}.parquet", to_table(part))
        write_labels(tmp_path / "labels" / f"train-{number:05d}.parquet", [label_of(u) for u in part], {"top_k": 1})
    batching = {"utterances": 2, "micro_batches": 3, "shuffle_blocks": 1}
    recipe = Recipe.model_validate({"train": {"epochs": 2, "batching": batching}, "seed": 3})
    return BatchLoader(
        shards=Location.of(tmp_path / "shards"),
        labels=Location.of(tmp_path / "labels"),
        label_key={"top_k": 1},
        n_mels=80,
        teacher_n_mels=0,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=recipe.seed,
    )


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.ids for batch in found] == [batch.ids for batch in expected]
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), name)


def from_feed(loader: BatchLoader, sampler: Sampler, cursor: DataCursor, world_size: int) -> list[list[Batch]]:
    """The batches that the ranks get, which all ask at the same time."""
    feed: Any = ray.remote(ray_stream._Feed).options(num_cpus=0, max_concurrency=world_size + 1)
    actor = feed.remote(loader, sampler, cursor, world_size)
    received = [ray_stream._received(actor, rank) for rank in range(world_size)]
    batches: list[list[Batch]] = [[] for _ in range(world_size)]
    while (made := [next(rank, None) for rank in received])[0] is not None:
        for of_rank, make in zip(batches, made, strict=True):
            of_rank.append(make())
    assert not any(made)
    return batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_feed_gives_each_rank_its_batches(loader: BatchLoader, ray_session: None, world_size: int, monkeypatch: Any):
    monkeypatch.setattr(ray_stream, "_ITEMS_PER_DATASET", 3)
    sampler = length_grouped_sampler(loader.rows(), loader)
    steps = list(steps_from(sampler, DataCursor()))
    for cursor in (DataCursor(), steps[len(steps) // 3].next):
        for rank, found in enumerate(from_feed(loader, sampler, cursor, world_size)):
            tasks = tasks_from(sampler, cursor, rank, world_size)
            assert_same(found, [batch for task in tasks for batch in loader.batches(task)])


def test_stream_of_one_rank(loader: BatchLoader, ray_session: None):
    sampler = length_grouped_sampler(loader.rows(), loader)
    expected = [batch for task in tasks_from(sampler, DataCursor(), 0, 1) for batch in loader.batches(task)]
    assert_same(list(ray_batches(loader, sampler, DataCursor())), expected)


def test_damaged_shard_is_named_on_every_rank(loader: BatchLoader, ray_session: None):
    sampler = length_grouped_sampler(loader.rows(), loader)
    for shard in loader.shards.files():
        shard.write_bytes(b"PAR1")
    feed: Any = ray.remote(ray_stream._Feed).options(num_cpus=0, max_concurrency=3)
    actor = feed.remote(loader, sampler, DataCursor(), 2)
    for rank in (0, 1, 1):
        with pytest.raises(AskdError, match=r"^[^\n]*train-0000\d\.parquet is damaged[^\n]*$"), user_error():
            ray.get(actor.take.remote(rank))


def test_waiting_executor_leaves_the_processor(ray_session: None):
    """Ray Data's loop spins while output waits; then the thread that trains waits for the interpreter."""

    def megabytes(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for _ in range(8):
            yield {"x": np.zeros(1 << 20, np.uint8)}

    configure()
    context = ray.data.DataContext.get_current()
    limit, context.execution_options.resource_limits = (
        context.execution_options.resource_limits,
        context.execution_options.resource_limits.copy(object_store_memory=100e6),
    )
    try:
        items = ray.data.from_items([{"task": i} for i in range(100)], override_num_blocks=100)
        rows = iter(items.flat_map(megabytes, num_cpus=0.5, concurrency=1).iter_rows())
        next(rows)
        time.sleep(3.0)  # until output waits
        cpu_s, wall_s = time.process_time(), time.monotonic()
        time.sleep(3.0)
        assert time.process_time() - cpu_s < 0.3 * (time.monotonic() - wall_s)  # about 1.0 for a loop that spins
    finally:
        context.execution_options.resource_limits = limit
