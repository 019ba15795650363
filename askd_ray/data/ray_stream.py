"""Load the batches of all ranks with Ray Data: tasks on the whole cluster decode while the workers train.

A run has one feed, whatever its number of ranks: an actor with one Ray Data pipeline, whose items are the parts of the
plan in the order in which the ranks need them. Ray divides the CPUs for loading among its pipelines, so with one for
each rank many ranks would get none. The feed hands out references; batches go from the nodes that made them to
the ranks that train on them.

``streaming_split`` would drop rows that do not divide by the number of ranks, and it cannot resume in the middle of an
epoch; a plan has neither problem.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast
from uuid import uuid4

import ray
import ray.data
import torch.distributed as dist
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.data.collate import BatchLoader, from_bytes, to_bytes
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import DataCursor, Sampler, batches_per_step, read_task
from askd_ray.data.schema import Batch
from askd_ray.ray_errors import user_error
from askd_ray.torch_setup import n_cores

_CPUS_PER_TASK = 0.5  # leaves CPUs for the training workers also on a small machine
_BYTES_PER_AUDIO_S = 200_000  # of a task: encoded audio, waveforms, log-mels, and the batches that it returns
_AHEAD = 8  # batches that wait in the worker, for example while the next dataset starts
_ITEMS_AHEAD = 2  # items of a rank that wait in the feed
_ITEMS_PER_DATASET = 4_096  # an item is a group of one rank; an epoch of a large run has a million
_PAUSE_S = 0.02


class _Pause(ExecutionCallback):
    """Lets the loop of Ray Data's executor sleep between its steps.

    While a task's output has to wait, the loop never blocks: its thread takes a core of the process, and the Python
    interpreter from the training thread, which then takes two to three times as long for a step.
    """

    def on_execution_step(self, executor: object) -> None:
        """Sleep."""
        time.sleep(_PAUSE_S)


def configure() -> None:
    """Make Ray Data keep the order of its input in this process, leave it the processor, and show no bars and logs."""
    context = ray.data.DataContext.get_current()
    context.custom_execution_callback_classes = [_Pause]
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Errors in rows are raised; the log would only repeat them with long tracebacks.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class _Item:
    """The part of one group that one rank reads, from a step on; it has ``n_batches`` micro-batches."""

    epoch: int
    group: int
    first_step: int
    rank: int
    n_batches: int


def ray_batches(
    loader: BatchLoader, sampler: Sampler, cursor: DataCursor, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield the micro-batches of a rank from a cursor on, in order; all ranks of a run call it together.

    Ray Data tasks make them ahead of the training step. The feed belongs to the process of rank 0 and ends with it.
    """
    name = f"askd-feed-{uuid4().hex}"
    if world_size > 1:
        names = [name] * world_size
        dist.all_gather_object(names, name)
        name = names[0]
    feed: Any = None
    if rank == 0:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = ray.remote(_Feed).options(
            name=name, num_cpus=0, max_concurrency=world_size + 1, scheduling_strategy=here
        )
        feed = options.remote(loader, sampler, cursor, world_size)
        ray.get(feed.ready.remote())
    if world_size > 1:
        dist.barrier()  # the other ranks find the feed only from here on
        feed = feed or ray.get_actor(name)
    yield from prefetch(_received(feed, rank), _AHEAD)


def _received(feed: Any, rank: int) -> Iterator[Callable[[], Batch]]:
    """Yield one function for each batch; it deserialises the bytes that a task has made."""
    with user_error():
        following = feed.take.remote(rank)
        while (blocks := cast(Any, ray.get(following))) is not None:
            following = feed.take.remote(rank)
            for block in blocks:
                for cell in cast(Any, ray.get(block)).column("batch"):
                    yield partial(_from_cell, cell)


def _from_cell(cell: Any) -> Batch:
    return from_bytes(cell.as_py())


class _Feed:
    """The one Ray Data pipeline of a run, in an actor; see the module's description."""

    def __init__(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor, world_size: int):
        self._loader, self._sampler, self._cursor, self._world_size = loader, sampler, cursor, world_size
        self._ready: list[queue.Queue[list[Any] | Exception | None]] = [
            queue.Queue(_ITEMS_AHEAD) for _ in range(world_size)
        ]
        threading.Thread(target=self._fill, daemon=True).start()

    def ready(self) -> None:
        """Return when the actor has started."""

    def take(self, rank: int) -> list[Any] | None:
        """Return references to the blocks of a rank's next item, or None after the last one."""
        item = self._ready[rank].get()
        if isinstance(item, Exception):
            self._ready[rank].put(item)
            with user_error():
                raise item
        return item

    def _fill(self) -> None:
        end: Exception | None = None
        try:
            for item, blocks in self._made():
                self._ready[item.rank].put(blocks)
        except Exception as error:  # every rank raises it
            end = error
        for waiting in self._ready:
            waiting.put(end)

    def _made(self) -> Iterator[tuple[_Item, list[Any]]]:
        """Yield each item with references to its blocks, in the order of the plan."""
        configure()
        items = self._items()
        while part := list(itertools.islice(items, _ITEMS_PER_DATASET)):
            bundles = self._dataset(part).iter_internal_ref_bundles()
            for item in part:
                blocks, n_rows = list[Any](), 0
                while n_rows < item.n_batches:
                    for entry in next(bundles).blocks:
                        blocks.append(entry.ref)
                        n_rows += entry.metadata.num_rows or 0
                assert n_rows == item.n_batches, "Ray Data has joined the output of two tasks"
                yield item, blocks

    def _items(self) -> Iterator[_Item]:
        per_step = batches_per_step(self._sampler, self._world_size)
        for group in self._sampler.groups(self._cursor):
            first = group.first_step(self._cursor)
            if n_batches := (group.n_steps - first) * per_step:
                for rank in range(self._world_size):
                    yield _Item(group.epoch, group.number, first, rank, n_batches)

    def _dataset(self, items: Sequence[_Item]) -> ray.data.Dataset:
        loader, sampler, world_size = self._loader, self._sampler, self._world_size

        def load(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            item = _Item(**row)
            group = next(sampler.groups(DataCursor(item.epoch, item.group, item.first_step)))
            for batch in loader.batches(read_task(sampler, group, item.first_step, item.rank, world_size)):
                yield {"batch": to_bytes(batch)}

        dataset = ray.data.from_items([asdict(item) for item in items], override_num_blocks=len(items))
        return dataset.flat_map(
            load, num_cpus=_CPUS_PER_TASK, memory=self._task_bytes(), concurrency=_concurrency(loader)
        )

    def _task_bytes(self) -> float:
        """Return the memory that a task needs, for Ray's scheduler: by the seconds of audio in a rank's first item."""
        group = next(self._sampler.groups(self._cursor), None)
        if group is None:
            return 0.0
        n_samples = sum(int(queue.rows["window_samples"].sum()) for queue in group.queues[:: self._world_size])
        return n_samples / SAMPLE_RATE_HZ * _BYTES_PER_AUDIO_S


def _concurrency(loader: BatchLoader) -> int | None:
    """Return the largest number of tasks at a time; None leaves it to the CPUs that Ray has for them.

    Where the training computes on CPUs, more tasks would only take them from it.
    """
    n_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return None if loader.train.workers.gpu else max(1, n_cores() // 4) * n_nodes
