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
    except Exception as error:
        # One that Ray has wrapped is an AskdError too, but says in pages where it was raised.
        plain = (e for e in _inside(error) if isinstance(e, AskdError) and not isinstance(e, RayError))
        if (users := next(plain, None)) is None or users is error:
            raise
        raise AskdError(str(users)) from error


def _inside(error: BaseException | None) -> Iterator[BaseException]:
    """Yield all errors that an error of Ray carries: its causes, and those of a training's controller and workers."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [current.__cause__, *(getattr(current, name, None) for name in ("cause", "controller_failure"))]
        queue += getattr(current, "worker_failures", {}).values()
