"""Decode untrusted audio files in separate processes with limits of time and memory; a file may kill its process."""

import asyncio
import json
import multiprocessing
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from threading import Lock, Semaphore
from typing import Any

import numpy as np
import psutil

from askd_ray.audio.decode import AudioError, DecodedAudio, read_audio

TIME_LIMIT_S = 30.0  # of CPU time; two hours of stereo MP3 take 7
_WAIT_FACTOR = 4.0  # allowed wall time / CPU time, since other processes compute too
_QUICK_S = 1.0  # a slower file frees its slot for the next file and continues in parallel
_MAX_SLOW_PER_SLOT = 3
_MEMORY_BYTES = 3 << 30  # of address space; two hours of stereo MP3 take 1.2 GB
_DIED = "unreadable audio: the decoder did not survive it"


class Sandbox:
    """``n`` processes that decode audio files. A process that takes too long or dies is replaced; only its file fails.

    A file that takes over a second does not block other files: up to three times ``n`` more processes are started for
    the files behind it. Processes are spawned, not forked: a fork of a process with threads may hang.
    """

    def __init__(self, n: int = 2, time_limit_s: float = TIME_LIMIT_S):
        self._context = multiprocessing.get_context("spawn")
        self._n, self._time_limit_s = n, time_limit_s
        self._threads = ThreadPoolExecutor((1 + _MAX_SLOW_PER_SLOT) * n, thread_name_prefix="sandbox")
        self._slots = Semaphore(n)
        self._idle = [self._start() for _ in range(n)]
        self._lock = Lock()

    async def decode(self, audio: bytes, max_s: float, partial: bool = False) -> DecodedAudio:
        """Decode an audio file (:func:`askd_ray.audio.decode.read_audio`).

        Raises :class:`AudioError` when the file cannot be decoded, takes too long or kills the process.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, audio, max_s, partial)

    def close(self) -> None:
        """Kill the processes."""
        self._threads.shutdown()
        for worker in self._idle:
            worker.kill()

    def _decode(self, audio: bytes, max_s: float, partial: bool) -> DecodedAudio:
        self._slots.acquire()
        holds_slot = True
        worker = self._take()
        try:
            worker.send(audio, max_s, partial)
            if not worker.is_done_within(min(_QUICK_S, self._time_limit_s)):
                self._slots.release()
                holds_slot = False
                worker.wait(self._time_limit_s)
            return worker.receive()
        except (EOFError, OSError, TimeoutError) as error:
            worker.kill()
            worker = self._start()
            too_long = f"takes too long: more than {self._time_limit_s:g} s to decode"
            raise AudioError(too_long if isinstance(error, TimeoutError) else _DIED) from None
        finally:
            self._put_back(worker)
            if holds_slot:
                self._slots.release()

    def _take(self) -> "_Worker":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _put_back(self, worker: "_Worker") -> None:
        with self._lock:
            if len(self._idle) < self._n:
                self._idle.append(worker)
                return
        worker.kill()

    def _start(self) -> "_Worker":
        return _Worker(self._context)


class _Worker:
    """One process and the pipe to it. The pipe carries bytes, not objects: nothing from the process is unpickled."""

    def __init__(self, context: Any):
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe,), daemon=True)
        self._process.start()
        child_pipe.close()

    def send(self, audio: bytes, max_s: float, partial: bool) -> None:
        """Send a file to the process."""
        self._pipe.send_bytes(json.dumps({"max_s": max_s, "partial": partial}).encode())
        self._pipe.send_bytes(audio)

    def is_done_within(self, seconds: float) -> bool:
        """Whether the process answers within this time."""
        return self._pipe.poll(seconds)

    def wait(self, time_limit_s: float) -> None:
        """Wait for the answer.

        Raises :class:`TimeoutError` after ``time_limit_s`` of CPU time, or after four times as much wall time.
        """
        begun, computed_s = time.monotonic(), self._computed_s()
        while not self.is_done_within(min(_QUICK_S, time_limit_s)):
            waited_s = time.monotonic() - begun
            if waited_s > _WAIT_FACTOR * time_limit_s or self._computed_s() - computed_s > time_limit_s:
                raise TimeoutError

    def receive(self) -> DecodedAudio:
        """Return the decoded audio.

        Raises :class:`AudioError` where the file cannot be decoded.
        """
        header = json.loads(self._pipe.recv_bytes())
        content = self._pipe.recv_bytes()
        if "error" in header:
            raise AudioError(header["error"])
        waveform = np.frombuffer(bytearray(content), np.float32)
        return DecodedAudio(waveform, tuple(header["missing"]), tuple(header["notes"]))

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _computed_s(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            raise EOFError from None  # the process is gone
        return times.user + times.system


def _serve(pipe: Connection) -> None:
    """Decode one file after the other, until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
            audio = pipe.recv_bytes()
        except EOFError:
            return
        try:
            decoded = read_audio(audio, request["max_s"], request["partial"])
        except AudioError as error:
            _send(pipe, {"error": str(error)})
        except MemoryError:
            _send(pipe, {"error": "too many samples: the memory does not hold them"})
        else:
            header = {"missing": decoded.missing, "notes": decoded.notes}
            _send(pipe, header, np.ascontiguousarray(decoded.waveform).tobytes())


def _send(pipe: Connection, header: dict[str, Any], content: bytes = b"") -> None:
    pipe.send_bytes(json.dumps(header).encode())
    pipe.send_bytes(content)
