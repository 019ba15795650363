"""Direct calls of the engines on this machine over Unix sockets, without Ray Serve's handle.

Where other work has used the processor's caches since the last call, a call of a handle takes 2 to 3 ms, and this 0.4
(docs/performance.md); a short clip takes 20. Serve's handle remains the way to busy engines, to those on other
machines, and for all calls that fail here.
"""

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter

from askd_ray.audio.decode import Waveform
from askd_ray.errors import AskdError
from askd_ray.serve.transcription_service import ChunkResult, SpeechEngine, TranscribeOptions

_SIZES, _SIZES_BYTES = "!IQ", 12  # bytes of a message's JSON, and of the samples after it; nothing is unpickled
_BACKLOG = 1024
_log = logging.getLogger(__name__)


class EngineSocket:
    """A Unix socket in ``folder`` through which other processes of this user call an engine of this process.

    Raises :class:`AskdError` for a folder that others can open, and :class:`OSError` for a path that is too long.
    """

    def __init__(self, engine: SpeechEngine, folder: Path, name: str):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise AskdError(f"{folder}: a folder that only this user can open is expected")
        self._engine = engine
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / f".{name}"))
        self._socket.listen(_BACKLOG)
        (folder / f".{name}").rename(folder / name)  # a socket that is bound and does not listen looks dead

    async def serve(self) -> None:
        """Answer calls until the task is cancelled."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: _Connection(self._engine), sock=self._socket, backlog=_BACKLOG)
        async with server:
            await server.serve_forever()


class _Connection(asyncio.Protocol):
    """A connection of an ingress, which carries one call after the other.

    The end of the connection cancels the call in progress. A call that fails ends the connection.
    """

    _transport: asyncio.Transport
    _call: "asyncio.Task[None] | None" = None

    def __init__(self, engine: SpeechEngine):
        self._engine = engine
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's, in Serve, is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < _SIZES_BYTES:
            return
        n_json, n_samples = struct.unpack_from(_SIZES, self._received)
        begin = _SIZES_BYTES + n_json
        if len(self._received) == begin + n_samples:
            request = json.loads(self._received[_SIZES_BYTES:begin])
            chunk = np.frombuffer(self._received[begin:], np.float32)
            self._received.clear()
            self._call = asyncio.create_task(self._answer(chunk, request))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._call is not None:
            self._call.cancel()

    async def _answer(self, chunk: Waveform, request: Mapping[str, Any]) -> None:
        try:
            options = _options_type().validate_python(request["options"])
            result = await self._engine.transcribe_chunk(chunk, options, request["owner"])
        except Exception as error:
            _log.info("a direct call failed, so Serve repeats it: %s", type(error).__name__)
            self._transport.close()
        else:
            self._transport.write(_message(asdict(result)))


class DirectEngines:
    """The engines whose sockets are in ``folder``; each gets at most ``max_calls`` direct calls at a time."""

    def __init__(self, folder: Path, max_calls: float):
        self._folder, self._max_calls = folder, max_calls
        self._n_calls = Counter[str]()
        self._idle = defaultdict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]](list)

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult | None:
        """Transcribe a chunk; None where no engine is free or the call failed.

        Cancelling the caller cancels the call.
        """
        name = min(self._names(), key=self._n_calls.__getitem__, default=None)
        if name is None or self._n_calls[name] >= self._max_calls:
            return None
        self._n_calls[name] += 1
        try:
            return await self._call(name, chunk, {"options": asdict(options), "owner": owner})
        except (OSError, EOFError) as error:
            _log.info("an engine did not answer a direct call: %s", type(error).__name__)
            for _, writer in self._idle.pop(name, []):
                writer.close()
            if isinstance(error, ConnectionRefusedError):  # its process is dead
                (self._folder / name).unlink(missing_ok=True)
            return None
        finally:
            self._n_calls[name] -= 1

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if not name.startswith(".")]
        except FileNotFoundError:  # no engine runs on this machine
            return []

    async def _call(self, name: str, chunk: Waveform, request: Mapping[str, Any]) -> ChunkResult:
        idle = self._idle[name]
        reader, writer = idle.pop() if idle else await asyncio.open_unix_connection(self._folder / name)
        try:
            writer.write(_message(request, np.ascontiguousarray(chunk, np.float32).tobytes()))
            n_json, _ = struct.unpack(_SIZES, await reader.readexactly(_SIZES_BYTES))
            answer = json.loads(await reader.readexactly(n_json))
        except BaseException:
            writer.close()
            raise
        self._idle[name].append((reader, writer))
        return _result_type().validate_python(answer)


def _message(content: Mapping[str, Any], samples: bytes = b"") -> bytes:
    encoded = json.dumps(content).encode()
    return b"".join((struct.pack(_SIZES, len(encoded), len(samples)), encoded, samples))


@lru_cache
def _options_type() -> TypeAdapter[TranscribeOptions]:
    return TypeAdapter(TranscribeOptions)


@lru_cache
def _result_type() -> TypeAdapter[ChunkResult]:
    return TypeAdapter(ChunkResult)
