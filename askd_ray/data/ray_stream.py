"""Load the batches of one rank with Ray Data: tasks on the whole cluster decode while the worker trains.

Each rank reads its own plan, not a part of one shared dataset. ``streaming_split`` would drop rows that do not divide
by the number of ranks, and it cannot resume in the middle of an epoch; a plan has neither problem.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from askd_ray.data.collate import BatchLoader, from_bytes, to_bytes
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import ReadTask
from askd_ray.data.schema import Batch
from askd_ray.torch_setup import n_cores

_CPUS_PER_TASK = 0.5  # leaves CPUs for the training workers also on a small machine
_AHEAD = 8  # batches that wait in the worker, for example while the next epoch's dataset starts
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


def ray_batches(loader: BatchLoader, tasks: Iterable[ReadTask]) -> Iterator[Batch]:
    """Yield the micro-batches of a rank's tasks in order; Ray Data tasks make them ahead of the training step.

    Each epoch is one dataset, so that only one epoch's plan is in memory.
    """
    epochs = (list(group) for _, group in itertools.groupby(tasks, key=lambda task: task.epoch))
    yield from prefetch((task for epoch in epochs for task in _epoch(loader, epoch)), _AHEAD)


def _epoch(loader: BatchLoader, tasks: Sequence[ReadTask]) -> Iterator[Callable[[], Batch]]:
    """Yield one function for each batch of an epoch; it deserialises the bytes that Ray Data delivers."""

    def load(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for batch in loader.batches(ReadTask.from_json(json.loads(item["task"]))):
            yield {"batch": to_bytes(batch)}

    configure()
    items = [{"task": json.dumps(task.to_json())} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # More concurrent tasks would only load torch more often: a small machine has two cores for everything.
    n_concurrent = max(1, n_cores() // 4)
    for row in dataset.flat_map(load, num_cpus=_CPUS_PER_TASK, concurrency=n_concurrent).iter_rows():
        yield partial(from_bytes, row["batch"])
