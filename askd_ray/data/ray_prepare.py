"""Run the tasks of `askd prepare` on a Ray cluster: one task for each part, bucket and shard."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from askd_ray.errors import AskdError
from askd_ray.ray_cluster import connect

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_MIN_AHEAD = 16
_AHEAD = 4  # tasks for each CPU whose results wait for earlier ones, or that wait for a CPU: these make a cluster grow


class RayRunner:
    """Runs tasks on the cluster of ``RAY_ADDRESS``, or on all cores of this machine.

    Ray repeats the tasks of a machine that fails. Results are numbers and short lists: audio goes from file to file.
    """

    threads = 1
    is_local = False

    def __init__(self) -> None:
        connect()

    def map(
        self, function: Callable[[_In], _Out], items: Iterable[_In], memory_mb: int = 512, local_threads: int = 1
    ) -> Iterator[_Out]:
        """Yield the results in order; see :class:`~askd_ray.data.task_runner.TaskRunner`."""
        task: Any = ray.remote(num_cpus=1, memory=memory_mb << 20)(_call)
        shared, tasks, rest = ray.put(function), deque[Any](), iter(items)
        try:
            while True:
                for item in rest:
                    tasks.append(task.remote(shared, item))
                    if len(tasks) >= max(_MIN_AHEAD, _AHEAD * int(ray.cluster_resources().get("CPU", 1))):
                        break
                if not tasks:
                    return
                result: Any = ray.get(tasks.popleft())
                if isinstance(result, _Failure):
                    raise result.error
                yield result
        finally:
            for waiting in tasks:
                ray.cancel(waiting)


@dataclass(frozen=True)
class _Failure:
    """An error for the user. As a result it keeps its type, and Ray does not print it for each task."""

    error: AskdError | OSError


def _call(function: Callable[[_In], _Out], item: _In) -> _Out | _Failure:
    try:
        return function(item)
    except (AskdError, OSError) as error:
        return _Failure(error)
