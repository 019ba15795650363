"""Unwraps our errors that Ray workers raise: users see one line, not Ray's long traceback.

Ray wraps errors in many ways. Some wrappers keep the error as an attribute. Others keep only the text of its traceback:
Ray Data's UserCodeException, an actor that failed in its constructor, a deployment of Serve that never started.
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
    """Re-raise an :class:`AskdError` or an :class:`OSError` that Ray has wrapped; other errors stay unchanged."""
    try:
        yield
    except Exception as error:
        original = next(filter(None, map(_unwrap, _nested_errors(error))), None)
        if original is None or original is error:
            raise
        raise original from error


def from_text(text: str) -> AskdError | OSError | None:
    """Return the last error in the text of a traceback, if it is one that users can fix, else None."""
    if ours := _OURS.findall(text):
        return AskdError(ours[-1])
    if of_the_system := _OF_THE_SYSTEM.findall(text):
        number, file = of_the_system[-1]
        return OSError(int(number), os.strerror(int(number)), file or None)
    return None


@contextmanager
def keyboard_interrupt() -> Generator[None]:
    """Let Ctrl-C raise :class:`KeyboardInterrupt`: Ray Train would end the process with 0, as after success.

    Ray Train's signal handler also stays after the training, when its controller has ended. So restore the old one.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _unwrap(error: BaseException) -> AskdError | OSError | None:
    # Ray's wrapper may also be an AskdError, but its message contains the traceback.
    if isinstance(error, AskdError) and not isinstance(error, RayError):
        first, *added = str(error).splitlines() or [""]  # Ray Data adds advice to the message
        return AskdError(first) if added else error
    if isinstance(error, OSError) and not isinstance(error, RayError):
        return error
    return from_text(str(error)) if isinstance(error, RayError) else None


def _nested_errors(error: BaseException | None) -> Iterator[BaseException]:
    """Yield all errors inside an error of Ray: its causes, and those of a training's controller and workers."""
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
