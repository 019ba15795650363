"""What a sampler is: it plans which utterance is in which micro-batch of which step.

:mod:`askd_ray.data.length_grouped` has the one that every run uses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window


@dataclass(frozen=True)
class Row:
    """One utterance of the train split, by its shard's name and its index there, with all that planning needs."""

    shard: str
    index: int
    id: str
    duration_s: float
    n_tokens: int
    domain: str


@dataclass(frozen=True)
class Planned:
    """One utterance in a micro-batch: its shard and index, the number of its copy (domains with a weight above 1 have
    several), the length of the encoder's window in samples, and the number of target tokens.
    """

    shard: str
    index: int
    copy: int
    window_samples: int
    n_tokens: int


MicroBatch = tuple[Planned, ...]


@dataclass(frozen=True)
class ReadTask:
    """The micro-batches that one rank takes from one group of shards, in order; a rank without data has empty ones."""

    epoch: int
    batches: tuple[MicroBatch, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the task as plain lists, for a Ray Data item."""
        return {"epoch": self.epoch, "batches": [[list(vars(p).values()) for p in batch] for batch in self.batches]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ReadTask":
        """Return the task of :meth:`to_json`."""
        return cls(value["epoch"], tuple(tuple(Planned(*p) for p in batch) for batch in value["batches"]))


@dataclass(frozen=True)
class DataCursor:
    """A run's position in its data: ``steps`` steps of this group of this epoch are done."""

    epoch: int = 0
    group: int = 0
    steps: int = 0


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
    """Plans which utterances a run trains on, step by step: each method is a pure function of settings and rows."""

    @property
    def shards(self) -> tuple[tuple[Row, ...], ...]:
        """The rows that it plans, by shard."""
        ...

    def steps(self, cursor: DataCursor) -> Iterator[Step]:
        """Yield the steps of the run from a cursor on."""
        ...

    def tasks(self, cursor: DataCursor, rank: int, world_size: int) -> Iterator[ReadTask]:
        """Yield a rank's tasks from a cursor on: :meth:`batches_per_step` micro-batches for each step, in order."""
        ...

    def batches_per_step(self, world_size: int) -> int:
        """Return the number of micro-batches of each rank in a step; for the last ranks some may be empty."""
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


SamplerFactory = Callable[[tuple[tuple[Row, ...], ...], SamplerSettings], Sampler]
"""Makes the sampler of a run from its labelled rows, by shard."""
