"""Our errors, raised in a worker somewhere on the cluster, as they were: one line, not Ray's pages of traceback.

Ray wraps what is raised there in many ways. Some keep the error as an attribute; others (Ray Data's UserCodeException,
an actor that died in its constructor, a deployment of Serve's that never started) keep only the text of its traceback.
"""

import os
import re
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from askd_ray.errors import AskdError

_OURS = re.compile(r"^askd_ray\.errors\.AskdError: (.+)$", re.MULTILINE)
_OF_THE_SYSTEM = re.compile(r"^\w+Error: \[Errno (\d+)\] [^:\n]+(?:: '([^'\n]*)')?$", re.MULTILINE)


@contextmanager
def user_error() -> Generator[None]:
    """Re-raise an :class:`AskdError` or an :class:`OSError` that Ray has wrapped; anything else goes on as it is."""
    try:
        yield
    except Exception as error:
        found = next(filter(None, map(_as_it_was, _inside(error))), None)
        if found is None or found is error:
            raise
        raise found from error


def from_text(text: str) -> AskdError | OSError | None:
    """Return the error that the text of a traceback ends with, if it is of a kind that users can mend."""
    if ours := _OURS.findall(text):
        return AskdError(ours[-1])
    if of_the_system := _OF_THE_SYSTEM.findall(text):
        number, file = of_the_system[-1]
        return OSError(int(number), os.strerror(int(number)), file or None)
    return None


@contextmanager
def keyboard_interrupt() -> Generator[None]:
    """Let Ctrl-C raise :class:`KeyboardInterrupt`: Ray Train ends the process with 0, as if all had been done.

    Its handler also stays after a training, where it would ask a controller that is gone.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _as_it_was(error: BaseException) -> AskdError | OSError | None:
    # What Ray has wrapped may be an AskdError too, but says in pages where it was raised.
    if isinstance(error, AskdError) and not isinstance(error, RayError):
        first, *added = str(error).splitlines() or [""]  # Ray Data adds advice to the message itself
        return AskdError(first) if added else error
    if isinstance(error, OSError) and not isinstance(error, RayError):
        return error
    return from_text(str(error)) if isinstance(error, RayError) else None


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
