"""A system in a process of its own: engines keep thread pools that wait awake, and would take each other's cores."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from askd_ray.errors import AskdError
from askd_ray.evaluate.systems import System

_PATIENCE_S = 5.0


class Isolated:
    """Makes a system in a new process, and passes clips to it and texts back.

    ``make`` and its arguments go to that process: a class or function of a module. Use it in a ``with``: the process
    ends with it.

    Raises :class:`AskdError` when the system cannot be made, and in ``transcribe`` what the system raises.
    """

    def __init__(self, make: Callable[..., System], *args: Any):
        # A fork would inherit locks of torch's and Ray's threads, held by nobody.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip."""
        self._pipe.send((audio, language))
        return self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()  # it ends when it finds nobody there
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()

    def _receive(self) -> str:
        try:
            text, error = self._pipe.recv()
        except EOFError:
            raise AskdError("evaluate: the process of a system died: out of memory?") from None
        if error is not None:
            raise AskdError(error)
        return text


def _serve(pipe: Connection, make: Callable[..., System], args: tuple[Any, ...]) -> None:
    try:
        system = make(*args)
        pipe.send(("", None))
        while True:
            audio, language = pipe.recv()
            pipe.send((system.transcribe(audio, language), None))
    except AskdError as error:
        pipe.send(("", str(error)))
    except (EOFError, OSError, KeyboardInterrupt):
        return
