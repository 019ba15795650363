"""The ingress processes of the service, of which this process is one."""

from typing import Protocol

from askd_ray.serve.metrics import ServiceMetrics


class Replicas(Protocol):
    """All ingress processes that run now: they divide the limit of concurrent requests among themselves."""

    @property
    def count(self) -> int:
        """The number of processes, this one included."""
        ...

    async def follow(self) -> None:
        """Keep ``count`` up to date until the task is cancelled."""
        ...

    async def exposition(self) -> bytes:
        """Return the metrics of all processes in Prometheus' text format."""
        ...


class OneReplica:
    """Replicas of which there is only this process."""

    count = 1

    def __init__(self, metrics: ServiceMetrics):
        self._metrics = metrics

    async def follow(self) -> None:
        """Return at once: the number does not change."""

    async def exposition(self) -> bytes:
        """Return the metrics of this process."""
        return self._metrics.exposition()
