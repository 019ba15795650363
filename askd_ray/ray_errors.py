"""Our errors, raised in a worker somewhere on the cluster, as they were: one line, not Ray's pages of traceback."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from askd_ray.errors import AskdError


@contextmanager
def user_error() -> Generator[None]:
    """Re-raise an :class:`AskdError` that Ray has wrapped; anything else goes on as it is."""
    try:
        yield
    except AskdError:
        raise
    except Exception as error:
        for inner in _inside(error):
            if isinstance(inner, AskdError):
                raise AskdError(str(inner).splitlines()[0] if isinstance(inner, RayError) else str(inner)) from error
        raise


def _inside(error: BaseException | None) -> Iterator[BaseException]:
    """Yield all errors that an error of Ray carries: its causes, and those of a training worker group."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [current.__cause__, getattr(current, "cause", None), *getattr(current, "worker_failures", {}).values()]
