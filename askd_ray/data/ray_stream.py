"""Ray Data carries the batches of one rank: tasks all over the cluster decode while the worker trains.

Each rank streams its own plan instead of a share of one dataset: ``streaming_split`` drops the rows that don't divide
by the number of ranks and cannot start in the middle, and a plan does neither.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ray.data

from askd_ray.data.collate import BatchLoader, from_bytes, to_bytes
from askd_ray.data.plan import ReadTask
from askd_ray.data.prefetch import prefetch
from askd_ray.data.schema import Batch
from askd_ray.torch_setup import n_cores

_CPUS_PER_TASK = 0.5  # leaves room beside the training workers, whatever the size of the machine
_AHEAD = 8  # batches that wait in the worker, also while the next epoch's dataset starts


def configure() -> None:
    """Let Ray Data keep the order of its input in this process, and be quiet: our own bars say more."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Errors of rows are raised: the log would only show them a second time, on pages.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def ray_batches(loader: BatchLoader, tasks: Iterable[ReadTask]) -> Iterator[Batch]:
    """Yield the micro-batches of a rank's tasks, in order, made by Ray Data tasks ahead of the training step.

    An epoch is one dataset, so that only its plan is in memory, however long the run.
    """
    epochs = (list(group) for _, group in itertools.groupby(tasks, key=lambda task: task.epoch))
    yield from prefetch((task for epoch in epochs for task in _epoch(loader, epoch)), _AHEAD)


def _epoch(loader: BatchLoader, tasks: Sequence[ReadTask]) -> Iterator[Callable[[], Batch]]:
    """Yield what makes the batches of an epoch of what Ray Data brings."""

    def load(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for batch in loader.batches(ReadTask.from_json(json.loads(item["task"]))):
            yield {"batch": to_bytes(batch)}

    configure()
    items = [{"task": json.dumps(task.to_json())} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # More tasks at a time than cores would only load torch more often: a small machine has two cores for everything.
    map_concurrently = max(1, n_cores() // 4)
    for row in dataset.flat_map(load, num_cpus=_CPUS_PER_TASK, concurrency=map_concurrently).iter_rows():
        yield partial(from_bytes, row["batch"])
