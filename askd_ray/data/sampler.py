"""What a sampler is: it plans which utterance is in which micro-batch of which step.

A sampler plans group by group: a group is a part of an epoch, some blocks of shards that are shuffled together.
:mod:`askd_ray.data.length_grouped` has the sampler that every run uses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.row_index import RowIndex, Rows
from askd_ray.data.shards import Block

PLANNED = [
    ("number", "<i8"),  # of the utterance, in the row index
    ("block", "<i4"),  # the number of its block, in the row index
    ("row", "<u2"),  # its place in the block
    ("copy", "<u2"),  # counts the copies of an utterance in an epoch: domains with a weight above 1 have several
    ("window_samples", "<i4"),  # the length of the encoder's window
    ("n_tokens", "<i4"),  # target tokens
]
"""The type of an utterance in a micro-batch, for numpy."""

MicroBatch = NDArray[Any]
"""The utterances of a micro-batch, of type :data:`PLANNED`."""


@dataclass(frozen=True)
class Queue:
    """Micro-batches, one for each step of a group: that of step ``i`` is ``rows[starts[i] : starts[i + 1]]``."""

    rows: MicroBatch
    starts: NDArray[np.int64]

    def __getitem__(self, step: int) -> MicroBatch:
        return self.rows[self.starts[step] : self.starts[step + 1]]


@dataclass(frozen=True)
class DataCursor:
    """A run's position in its data: ``steps`` steps of this group of this epoch are done."""

    epoch: int = 0
    group: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Group:
    """A group of an epoch: a queue for each micro-batch of a step. Step ``i`` begins at ``progress[i]`` of the run.

    ``progress`` has one more element than there are steps: where the group ends.
    """

    epoch: int
    number: int
    queues: tuple[Queue, ...]
    progress: NDArray[np.float64]

    @property
    def n_steps(self) -> int:
        """The number of steps."""
        return len(self.progress) - 1

    def first_step(self, cursor: DataCursor) -> int:
        """Return the step with which a run continues that is at ``cursor``, in this group or before it."""
        return cursor.steps if (self.epoch, self.number) == (cursor.epoch, cursor.group) else 0


@dataclass(frozen=True)
class ReadTask:
    """The micro-batches that one rank takes from one group, in order; a rank without data has empty ones.

    ``blocks``: where the blocks are stored that the utterances refer to.
    """

    epoch: int
    batches: tuple[MicroBatch, ...]
    blocks: dict[int, Block]


@dataclass(frozen=True)
class Step:
    """One step of a run: the run's progress before and after it, and the cursor of the next step."""

    epoch: int
    begins: float
    ends: float
    next: DataCursor


@dataclass(frozen=True)
class Padding:
    """The share of padding in the computed audio frames, and in the decoder positions."""

    audio: float
    tokens: float


class Sampler(Protocol):
    """Plans which utterances a run trains on: each method is a pure function of settings and rows."""

    @property
    def index(self) -> RowIndex:
        """The rows that it plans."""
        ...

    @property
    def n_queues(self) -> int:
        """The number of micro-batches in a step."""
        ...

    def groups(self, cursor: DataCursor) -> Iterator[Group]:
        """Yield the groups that have steps, from the group of ``cursor`` to the end of the run."""
        ...

    def last_progress(self) -> float:
        """Return the progress at which the last step of the run begins."""
        ...

    def padding(self) -> Padding:
        """Return the share of padding in what the run computes, or in a sample of it."""
        ...


class SamplerSettings(Protocol):
    """What a sampler reads of a recipe."""

    @property
    def train(self) -> Train: ...  # noqa: D102
    @property
    def window(self) -> Window: ...  # noqa: D102
    @property
    def augment(self) -> Augment: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


SamplerFactory = Callable[[RowIndex, SamplerSettings], Sampler]
"""Makes the sampler of a run from its labelled rows."""


def steps_from(sampler: Sampler, cursor: DataCursor) -> Iterator[Step]:
    """Yield the steps of the run from a cursor on."""
    for group in sampler.groups(cursor):
        for i in range(group.first_step(cursor), group.n_steps):
            after = DataCursor(group.epoch, group.number, i + 1)
            yield Step(group.epoch, float(group.progress[i]), float(group.progress[i + 1]), after)


def batches_per_step(sampler: Sampler, world_size: int) -> int:
    """Return the number of micro-batches of each rank in a step; for the last ranks some may be empty."""
    return -(-sampler.n_queues // world_size)


def tasks_from(sampler: Sampler, cursor: DataCursor, rank: int, world_size: int) -> Iterator[ReadTask]:
    """Yield a rank's tasks from a cursor on: :func:`batches_per_step` micro-batches for each step, in order."""
    for group in sampler.groups(cursor):
        yield read_task(sampler, group, group.first_step(cursor), rank, world_size)


def read_task(sampler: Sampler, group: Group, first_step: int, rank: int, world_size: int) -> ReadTask:
    """Return a rank's task of one group, from a step on."""
    queues = group.queues[rank::world_size]
    missing = [np.empty(0, PLANNED)] * (batches_per_step(sampler, world_size) - len(queues))
    steps = range(first_step, group.n_steps)
    batches = tuple(batch for i in steps for batch in [*(queue[i] for queue in queues), *missing])
    numbers = np.unique(np.concatenate([np.empty(0, np.int32), *(batch["block"] for batch in batches)]))
    return ReadTask(group.epoch, batches, {number: sampler.index.block(number) for number in numbers.tolist()})


def planned(rows: Rows, window_samples: NDArray[Any], copies: NDArray[Any] | int = 0) -> MicroBatch:
    """Return utterances of an index with their windows, as they stand in micro-batches."""
    batch = np.empty(len(rows.number), PLANNED)
    for name, values in (("number", rows.number), ("block", rows.block), ("row", rows.row), ("n_tokens", rows.tokens)):
        batch[name] = values
    batch["window_samples"], batch["copy"] = window_samples, copies
    return batch


def queue_of(batches: Sequence[MicroBatch]) -> Queue:
    """Return micro-batches as a queue."""
    starts = np.cumsum([0, *map(len, batches)], dtype=np.int64)
    return Queue(np.concatenate([np.empty(0, PLANNED), *batches]), starts)
