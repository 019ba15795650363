"""The engines on Ray Serve: a replica with the models, and all replicas behind one speech engine.

When a replica dies, its requests are retried on another one: they take longer but succeed.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from askd_ray.audio.decode import Waveform
from askd_ray.errors import AskdError
from askd_ray.models.transcript import UnitPath
from askd_ray.serve.engine import ServedModels
from askd_ray.serve.engine_sockets import DirectEngines, EngineSocket
from askd_ray.serve.registry import Registry
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.swap import Follower, load_verified
from askd_ray.serve.transcription_service import BusyError, ChunkResult, Model, TranscribeOptions

_RETRY_S = 0.2
_HEALTHY_S = 10.0  # an engine that transcribed a chunk is taken for healthy for this long
_MODELS_PERIOD_S = 1.0  # of asking an engine for the list of models
_log = logging.getLogger(__name__)


class EngineReplica:
    """A replica with the models: it loads them, warms them up, and transcribes chunks.

    With ``direct``, other processes of this machine may call it without Serve.
    """

    _listening: "asyncio.Task[None] | None" = None

    def __init__(self, args: ServiceArgs, direct: bool = False):
        hardware = args.hardware()
        self._models = ServedModels(hardware)
        for name, bundle in args.models.items():
            self._models.put(load_verified(Path(bundle), name, hardware))
        if args.registry is not None:
            follower = Follower(self._models, Registry(Path(args.registry)), hardware)
            follower.load_all()
            follower.start()
        if direct:
            self._listen()

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk."""
        return await self._models.transcribe_chunk(chunk, options, owner)

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        """Return the path of units through a piece of audio."""
        return await self._models.read_path(piece, options, owner)

    async def models(self) -> Sequence[Model]:
        """Return the served models."""
        return await self._models.models()

    async def check(self) -> None:
        """Run a tiny inference with each model."""
        await self._models.check()

    async def check_health(self) -> None:
        """Raise where inference fails, so that Serve replaces the replica; skip this soon after a transcription."""
        if time.monotonic() - self._models.last_chunk_at >= _HEALTHY_S:
            await self._models.check()

    def _listen(self) -> None:
        """Accept direct calls."""
        try:
            engine_socket = EngineSocket(
                self._models, socket_folder(), serve.get_replica_context().replica_id.unique_id
            )
        except (AskdError, OSError) as error:
            return _log.warning("no direct calls, which makes short clips slower: %s", error)
        self._listening = asyncio.get_running_loop().create_task(engine_socket.serve())


def socket_folder() -> Path:
    """Return the folder for the sockets of this application's engines on this machine."""
    ray_context = ray.get_runtime_context()
    app_name = serve.get_replica_context().app_name
    return Path(ray_context.get_temp_dir()) / ray_context.get_session_name() / f"{app_name}-engines"


class RaySpeechEngine:
    """All engine replicas behind one :class:`~askd_ray.serve.transcription_service.SpeechEngine`.

    Chunks go to engines of this machine directly, where these are free.
    """

    def __init__(self, engines: DeploymentHandle[EngineReplica], direct_engines: DirectEngines, retry_s: float):
        self._direct_engines = direct_engines
        # Arguments by value over gRPC: through the object store, a clip of some seconds takes 10 ms longer.
        self._engines, self._retry_s = engines.options(_by_reference=False), retry_s
        self._models: Sequence[Model] = ()
        self._models_at = -math.inf

    async def follow(self) -> None:
        """Keep the list of models up to date until the task is cancelled, so that no request has to ask for it."""
        while True:
            try:
                await self._ask_for_models()
            except (RayError, RayServeException, BusyError) as error:
                _log.warning("the engines do not answer: %s", type(error).__name__)
            await asyncio.sleep(_MODELS_PERIOD_S)

    async def models(self) -> Sequence[Model]:
        """Return the served models; the list is at most two seconds old."""
        if time.monotonic() - self._models_at >= 2 * _MODELS_PERIOD_S:
            await self._ask_for_models()
        return self._models

    async def _ask_for_models(self) -> None:
        asked_at = time.monotonic()
        self._models = await self._call("models")
        self._models_at = asked_at

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk."""
        result = await self._direct_engines.transcribe_chunk(chunk, options, owner)
        return result or await self._call("transcribe_chunk", chunk, options, owner)

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        """Return the path of units through a piece of audio."""
        return await self._call("read_path", piece, options, owner)

    async def check(self) -> None:
        """Run a tiny inference on a replica."""
        await self._call("check")

    async def _call(self, method: str, *args: Any) -> Any:
        """Call a replica; retry on another one where it dies. Cancelling the caller cancels the call."""
        ends_at = time.monotonic() + self._retry_s
        while True:
            response = getattr(self._engines, method).remote(*args)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError:
                raise BusyError from None
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, AskdError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayActorError:
                if time.monotonic() >= ends_at:
                    raise
                await asyncio.sleep(_RETRY_S)
