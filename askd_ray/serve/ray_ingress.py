"""The ingress on Ray Serve: HTTP, decoding and speech detection, in one replica or in many.

A request, and a session of live captions, stays in the replica that has accepted it. Three things concern all replicas:
the limit of concurrent requests is divided among those that run, each of them answers ``/metrics`` for all, and all
of them drain before the service stops.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from askd_ray.serve.engine_sockets import DirectEngines
from askd_ray.serve.listener import Address, listening
from askd_ray.serve.metrics import ServiceMetrics, merged
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.ray_engine import EngineReplica, RaySpeechEngine, socket_folder
from askd_ray.serve.replicas import OneReplica, Replicas
from askd_ray.serve.sandbox import Sandbox
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.transcription_service import TranscriptionService

_COUNT_S = 2.0  # period of counting the replicas
_ANSWER_S = 5.0  # how long the other replicas may take to answer
_MIN_SLOTS = 2  # for decoding, so that a long file does not hold up a short one
_log = logging.getLogger(__name__)


class RayReplicas:
    """The running replicas of this replica's deployment; see :class:`~askd_ray.serve.replicas.Replicas`."""

    def __init__(self, metrics: ServiceMetrics):
        context = serve.get_replica_context()
        self.replica_id = context.replica_id.unique_id
        self.count = 1
        self._metrics = metrics
        self._all: DeploymentHandle[Ingress] = serve.get_deployment_handle(context.deployment, context.app_name)

    async def follow(self) -> None:
        """Count the running replicas again and again."""
        while True:
            self.count = max(1, len(await self._answers("replica_id")))
            await asyncio.sleep(_COUNT_S)

    async def exposition(self) -> bytes:
        """Return the metrics of all replicas, with the label ``replica``."""
        others: list[tuple[str, bytes]] = await self._answers("replica_metrics")
        return merged(dict(others) | {self.replica_id: self._metrics.exposition()})

    async def _answers(self, method: str) -> list[Any]:
        """Return what the replicas answer; without those that are starting, stopping or dead."""
        try:
            answers = await self._all.broadcast(method).results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            _log.warning("the replicas of the ingress do not answer: %s", type(error).__name__)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


class Ingress:
    """An HTTP replica: behind Serve's proxies, or with a server of its own at ``address``."""

    def __init__(self, args: ServiceArgs, engines: DeploymentHandle[EngineReplica], address: Address | None):
        self._limits = RequestLimits(args.requests, args.request_s, keys=args.keys(), origins=args.origins)
        sandbox = Sandbox(max(_MIN_SLOTS, math.ceil(args.ingress_cpus)))
        one_engine = (args.max_engines or args.engines) == 1  # else Serve chooses among the busy ones, and counts them
        direct_engines = DirectEngines(socket_folder(), math.inf if one_engine else 1)
        self._engine = RaySpeechEngine(engines, direct_engines, args.request_s)
        self._service = TranscriptionService(self._engine, sandbox, args.audio_s)
        self._metrics = ServiceMetrics()
        is_single = (args.max_ingresses or args.ingresses) == 1
        self._replicas: Replicas = OneReplica(self._metrics) if is_single else RayReplicas(self._metrics)
        self._address = address
        self._drain: Callable[[], Awaitable[None]] | None = None

    async def drain(self) -> None:
        """Accept no more requests, and return when those in progress are answered; behind Serve's proxies, at once."""
        if self._drain is not None:
            await self._drain()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls this method after the constructor."""
        return build_app(self._service, self._limits, self._metrics, self._lifespan, self._replicas)

    async def replica_id(self) -> str:
        """Return the id of this replica."""
        return serve.get_replica_context().replica_id.unique_id

    async def replica_metrics(self) -> tuple[str, bytes]:
        """Return the id and the metrics of this replica."""
        return await self.replica_id(), self._metrics.exposition()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """Run the server around the app; Serve leaves the block when the requests that it counts are done."""
        following = [asyncio.create_task(work) for work in (self._replicas.follow(), self._engine.follow())]
        try:
            if self._address is None:
                yield
            else:
                async with listening(app, self._address, self._limits.longest_s) as self._drain:
                    yield
        finally:
            for task in following:
                task.cancel()
