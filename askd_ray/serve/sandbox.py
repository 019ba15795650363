"""Files of strangers are decoded in processes of their own, with limits of time and memory; they may die of it."""

import asyncio
import multiprocessing
import resource
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

import numpy as np

from askd_ray.audio.decode import AudioError, Waveform, decode

TIME_LIMIT_S = 30.0
_MEMORY_BYTES = 6 << 30  # of address space: torch alone maps 4 GB
_TOO_LONG = f"takes too long: more than {TIME_LIMIT_S:g} s to decode"
_DIED = "unreadable audio: the decoder did not survive it"


class Sandbox:
    """``n`` processes that decode audio files. One that overruns or dies is replaced, and only its file is refused.

    They are started anew and not forked: a fork of a process with threads may hang.
    """

    def __init__(self, n: int = 2, time_limit_s: float = TIME_LIMIT_S):
        self._context = multiprocessing.get_context("spawn")
        self._time_limit_s = time_limit_s
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="sandbox")
        self._idle = [self._start() for _ in range(n)]
        self._lock = Lock()

    async def decode(self, audio: bytes, max_s: float) -> Waveform:
        """Return the waveform of an audio file (:func:`askd_ray.audio.decode.decode`).

        Raises :class:`AudioError` when it cannot be used, takes too long or kills the process.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, audio, max_s)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown()
        for worker in self._idle:
            worker.kill()

    def _decode(self, audio: bytes, max_s: float) -> Waveform:
        with self._lock:
            worker = self._idle.pop()
        try:
            answer = worker.ask(audio, max_s, self._time_limit_s)
        except (EOFError, OSError, TimeoutError) as error:
            worker.kill()
            worker = self._start()
            raise AudioError(_TOO_LONG if isinstance(error, TimeoutError) else _DIED) from None
        finally:
            with self._lock:
                self._idle.append(worker)
        if isinstance(answer, str):
            raise AudioError(answer)
        return answer

    def _start(self) -> "_Worker":
        return _Worker(self._context)


class _Worker:
    """One process and the pipe to it. Bytes go through it, not objects: nothing that comes back is unpickled."""

    def __init__(self, context: Any):
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, audio: bytes, max_s: float, time_limit_s: float) -> Waveform | str:
        """Return a file's waveform, or why there is none."""
        self._pipe.send_bytes(np.float64(max_s).tobytes())
        self._pipe.send_bytes(audio)
        if not self._pipe.poll(time_limit_s):
            raise TimeoutError
        is_waveform = self._pipe.recv_bytes() == b"+"
        answer = self._pipe.recv_bytes()
        return np.frombuffer(bytearray(answer), np.float32) if is_waveform else answer.decode("utf-8")

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    """Decode one file after the other, until the other end closes."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    while True:
        try:
            max_s = float(np.frombuffer(pipe.recv_bytes(), np.float64)[0])
            audio = pipe.recv_bytes()
        except EOFError:
            return
        try:
            waveform = decode(audio, max_s)
        except AudioError as error:
            _answer(pipe, b"-", str(error).encode("utf-8"))
        except MemoryError:
            _answer(pipe, b"-", b"too many samples: the memory does not hold them")
        else:
            _answer(pipe, b"+", np.ascontiguousarray(waveform).tobytes())


def _answer(pipe: Connection, kind: bytes, content: bytes) -> None:
    pipe.send_bytes(kind)
    pipe.send_bytes(content)
