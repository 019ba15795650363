"""A system in a process of its own: engines keep thread pools that wait awake, and would take each other's cores."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from askd_ray.errors import AskdError

_PATIENCE_S = 5.0


class Isolated:
    """Makes a system in a new process and passes calls of its methods there.

    ``make`` and its arguments go to that process: a class or function of a module. ``opened_s`` is how long it took to
    make, the process's own start not counted. Use it in a ``with``: the process ends with it.

    Raises :class:`AskdError` when the system cannot be made, and in calls what the system raises.
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        # A fork would inherit locks of torch's and Ray's threads, held by nobody.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        self.opened_s = float(self._receive())

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip."""
        return self.call("transcribe", audio, language)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the system."""
        self._pipe.send((method, args))
        return self._receive()

    def peak_mb(self) -> float:
        """Return the most memory that the process has held, in MB."""
        return self.call("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()  # it ends when it finds nobody there
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer, error = self._pipe.recv()
        except EOFError:
            raise AskdError("evaluate: the process of a system died: out of memory?") from None
        if error is not None:
            raise AskdError(error)
        return answer


def _serve(pipe: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        begun = time.perf_counter()
        system = make(*args)
        pipe.send((time.perf_counter() - begun, None))
        while True:
            method, given = pipe.recv()
            pipe.send((getattr(system, method)(*given) if method else _peak_mb(), None))
    except AskdError as error:
        pipe.send(("", str(error)))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
