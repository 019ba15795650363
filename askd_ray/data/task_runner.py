"""Run the tasks of a stage: in this process, or, with :mod:`askd_ray.data.ray_prepare`, on a Ray cluster."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class TaskRunner(Protocol):
    """Calls a function for many items. A task may run twice, so the files that it writes must be atomic."""

    threads: int
    """The number of threads that a task should use."""
    is_local: bool
    """Whether the function runs in this process."""

    def map(
        self, function: Callable[[_In], _Out], items: Iterable[_In], memory_mb: int = 512, local_threads: int = 1
    ) -> Iterator[_Out]:
        """Yield the results in the order of the items.

        ``memory_mb`` is what a task needs at most. ``local_threads`` is the number of calls at a time in one process;
        on a cluster, the resources decide.
        """
        ...


class LocalRunner:
    """Runs tasks in this process. The results do not depend on the number of threads."""

    is_local = True

    def __init__(self, threads: int):
        self.threads = threads

    def map(
        self, function: Callable[[_In], _Out], items: Iterable[_In], memory_mb: int = 512, local_threads: int = 1
    ) -> Iterator[_Out]:
        """Yield the results in order; see :class:`TaskRunner`."""
        yield from map_in_order(function, items, local_threads, ahead=1)


def map_in_order(function: Callable[[_In], _Out], items: Iterable[_In], threads: int, ahead: int = 8) -> Iterator[_Out]:
    """Yield ``function`` of each item in order; each of the threads may be ``ahead`` items in advance of the reader."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures: deque[Future[_Out]] = deque()
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) >= threads * ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
