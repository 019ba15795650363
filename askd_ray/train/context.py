"""The interface between the loop and what runs it: Ray Train, Ray Tune or a plain process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from askd_ray.data.collate import BatchLoader
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import DataCursor, Sampler, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.torch_setup import n_cores

_AHEAD = 4  # micro-batches per core that are prefetched into memory


class Context(Protocol):
    """The execution context of one rank."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on."""
        ...

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Yield this rank's micro-batches from a cursor on, in order."""
        ...

    def report(self, metrics: dict[str, float]) -> None:
        """Report the metrics of an evaluation; every rank calls it at the same steps."""
        ...


@dataclass
class PlainContext:
    """One process with one device, without Ray Train. It keeps reported metrics in ``reports``."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    reports: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Build the batches in this process, in background threads."""
        tasks = tasks_from(sampler, cursor, self.rank, self.world_size)
        jobs = (job for task in tasks for job in loader.batch_tasks(task))
        return prefetch(jobs, _AHEAD * n_cores(), threads=n_cores())

    def report(self, metrics: dict[str, float]) -> None:
        """Keep the metrics."""
        self.reports.append(metrics)
