"""Runs a system in a separate process.

Engines keep thread pools that wait actively: in one process they would take cores from each other.
"""

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from askd_ray.errors import AskdError

_PATIENCE_S = 5.0


class Isolated:
    """Creates a system in a new process and forwards method calls to it.

    ``make`` is a class or function of a module; it runs in the new process with ``args``. ``opened_s`` is the time to
    create the system, without the start of the process. Use it in a ``with`` block: at its end the process ends.

    Raises :class:`AskdError` when the system cannot be created; a call raises the system's :class:`AskdError`.
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        # A fork would inherit locks that threads of torch and Ray hold, and nobody would release them.
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, make, args), daemon=True)
        self._process.start()
        child_pipe.close()
        self.opened_s = float(self._receive())

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip."""
        return self.call("transcribe", audio, language)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the system."""
        self._pipe.send((method, args))
        return self._receive()

    def peak_mb(self) -> float:
        """Return the peak memory of the process in MB."""
        return self.call("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()  # the process ends when the pipe is closed
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer, error = self._pipe.recv()
        except EOFError:
            raise AskdError("evaluate: the process of a system ended unexpectedly: out of memory?") from None
        if error is not None:
            raise AskdError(error)
        return answer


def _serve(pipe: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        begun = time.perf_counter()
        system = make(*args)
        gc.freeze()  # faster-whisper collects garbage for each clip: do not charge it for what our program has imported
        pipe.send((time.perf_counter() - begun, None))
        while True:
            method, call_args = pipe.recv()
            pipe.send((getattr(system, method)(*call_args) if method else _peak_mb(), None))
    except AskdError as error:
        pipe.send(("", str(error)))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage also counts pages of the parent process
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
