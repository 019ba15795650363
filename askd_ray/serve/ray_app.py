"""The service on Ray Serve: an ingress deployment for HTTP and an engine deployment for the models.

The ingress decodes a file, detects the speech and sends chunks to the engine replicas. An engine replica batches the
chunks of all requests. When a replica dies, its requests are retried on another one: they take longer but succeed.
"""

import asyncio
import contextlib
import io
import logging
import signal
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.util
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from askd_ray.audio.decode import Waveform
from askd_ray.errors import AskdError
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.ray_errors import from_text
from askd_ray.serve.engine import ServedModels
from askd_ray.serve.listener import Address, listening
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.registry import Registry
from askd_ray.serve.sandbox import Sandbox
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.swap import Follower, load_verified
from askd_ray.serve.transcription_service import BusyError, ChunkResult, Model, TranscribeOptions, TranscriptionService

APP_NAME = "askd"
_REPORT_S = 0.5  # time for Ray to print its report of the killed controller
_RETRY_S = 0.2
_CHECK_S = 1  # period of Serve's health checks, by which it notices a dead replica
_HEALTHY_S = 10.0  # an engine that transcribed a chunk is taken for healthy for this long
_NO_LIMIT = 100_000  # of requests in Serve: the app enforces the limit, with errors in OpenAI's format
_MODELS_CACHE_S = 1.0  # how long the list of models is cached


class EngineReplica:
    """A replica with the models: it loads them, warms them up, and transcribes chunks."""

    def __init__(self, args: ServiceArgs):
        hardware = args.hardware()
        self._models = ServedModels(hardware)
        for name, bundle in args.models.items():
            self._models.put(load_verified(Path(bundle), name, hardware))
        if args.registry is not None:
            follower = Follower(self._models, Registry(Path(args.registry)), hardware)
            follower.load_all()
            follower.start()

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk."""
        return await self._models.transcribe_chunk(chunk, options, owner)

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


class RaySpeechEngine:
    """All engine replicas behind one :class:`~askd_ray.serve.transcription_service.SpeechEngine`."""

    def __init__(self, engines: DeploymentHandle[EngineReplica], retry_s: float):
        # Arguments by value over gRPC: through the object store, a clip of some seconds takes 10 ms longer.
        self._engines, self._retry_s = engines.options(_by_reference=False), retry_s
        self._models: Sequence[Model] = ()
        self._models_at = -_MODELS_CACHE_S

    async def models(self) -> Sequence[Model]:
        """Return the served models, from a cache of at most one second."""
        if time.monotonic() - self._models_at >= _MODELS_CACHE_S:
            self._models = await self._call("models")
            self._models_at = time.monotonic()
        return self._models

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk."""
        return await self._call("transcribe_chunk", chunk, options, owner)

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


class Ingress:
    """An HTTP replica: behind Serve's proxies, or with a server of its own at ``address``."""

    def __init__(self, args: ServiceArgs, engines: DeploymentHandle[EngineReplica], address: Address | None):
        self._limits = RequestLimits(args.requests, args.request_s, keys=args.keys(), origins=args.origins)
        self._service = TranscriptionService(RaySpeechEngine(engines, args.request_s), Sandbox(), args.audio_s)
        self._address = address
        self._drain: Callable[[], Awaitable[None]] | None = None

    async def drain(self) -> None:
        """Accept no more requests, and return when those in progress are answered; behind Serve's proxies, at once."""
        if self._drain is not None:
            await self._drain()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls this method after the constructor."""
        return build_app(self._service, self._limits, ServiceMetrics(), self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """Run the server around the app; Serve leaves the block when the requests that it counts are done."""
        if self._address is None:
            yield
        else:
            async with listening(app, self._address, self._limits.longest_s) as self._drain:
                yield


def build(args: ServiceArgs) -> serve.Application:
    """Return the Serve application that ``import_path: askd_ray.serve.ray_app:build`` deploys.

    Its requests come through Serve's proxies.
    """
    return _application(args, None)


def _application(args: ServiceArgs, address: Address | None) -> serve.Application:
    """Return the application. With ``address``, its ingress runs on this node and needs no proxy.

    A proxy adds a process to the path of each request and forwards the body in small pieces: for a clip of some seconds
    that takes longer than the rest of the path (docs/LOG.md).
    """
    common: dict[str, Any] = {
        "health_check_period_s": _CHECK_S,
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": RequestLimits(request_s=args.request_s).longest_s + 10,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    }
    engines = serve.deployment(
        name="Engine",
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.engines,
            max_replicas=args.max_engines or args.engines,
            target_ongoing_requests=args.chunks_per_engine(),
            upscale_delay_s=5,
        ),
        ray_actor_options={"num_cpus": 1, "num_gpus": args.gpus_per_engine if args.device == "cuda" else 0},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(EngineReplica).bind(args)
    resources = {} if address is None else {f"node:{ray.util.get_node_ip_address()}": 0.001}
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1, "resources": resources},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, engines, address)


def serve_bundles(args: ServiceArgs, address: Address, blocking: bool = True) -> str:
    """Serve bundles (or plain CTranslate2 Whisper folders); return the URL when the service is ready.

    With ``blocking``, serve until Ctrl-C or a termination signal, then stop everything. Without, the caller calls
    :func:`stop_serving`.

    Raises :class:`AskdError` when a folder holds no model or the port is in use.
    """
    names = args.check()
    with address.reserved() as address:
        hardware = args.hardware()  # timed once, not in each engine
        _run(args.model_copy(update={"threads": hardware.threads}), names, address, blocking)
    return address.url


def _run(args: ServiceArgs, names: Sequence[str], address: Address, blocking: bool) -> None:
    connect(use_gpu=args.device == "cuda")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        _deploy(_application(args, address))
        _say_ready(address, names, bool(args.keys()))
        if blocking:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's handler prints a stack trace
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping once the requests in progress are answered (Ctrl-C again: within 30 s)")
    finally:
        if blocking:
            try:
                stop_serving()
            finally:
                disconnect()


def _deploy(application: serve.Application) -> None:
    try:
        serve.run(application, name=APP_NAME, route_prefix="/")
    except RuntimeError:  # it names the deployment that failed; only the status contains the reason
        deployments = serve.status().applications[APP_NAME].deployments.values()
        error = from_text("\n".join(deployment.message for deployment in deployments))
        if error is None:
            raise
        raise error from None


def stop_serving() -> None:
    """Answer the requests in progress, then stop the service; the Ray cluster keeps running.

    Serve alone waits only 30 s for them. A second Ctrl-C or signal limits the wait to these 30 s.
    """
    with contextlib.suppress(KeyboardInterrupt):
        _drain_ingress()
    with contextlib.redirect_stdout(io.StringIO()):  # hide Ray's report: Serve kills its controller on purpose
        serve.shutdown()
        time.sleep(_REPORT_S)


def _drain_ingress() -> None:
    app = serve.status().applications.get(APP_NAME)
    ingress = app.deployments.get("Ingress") if app else None
    if ingress is None or not any(state == "RUNNING" and n for state, n in ingress.replica_states.items()):
        return  # the ingress is starting or gone: no request is in progress
    with contextlib.suppress(ray.exceptions.RayActorError):  # the ingress died meanwhile
        serve.get_app_handle(APP_NAME).drain.remote().result()


def _say_ready(address: Address, names: Sequence[str], has_keys: bool) -> None:
    url = address.url
    name, *others = names
    also = f" and {', '.join(others)}" if others else ""
    console.print(f"Serving [bold]{name}[/bold]{also} at {url} (Ctrl-C stops it). Try:")
    console.print(f"  curl {url}/v1/audio/transcriptions -F file=@speech.wav -F model={name}")
    console.print(f"  or open {url} in a browser")
    if not (address.is_loopback or has_keys):
        warning = f"It listens on {address.host}: everyone who can reach this machine can use it, without a key."
        console.print(f"[yellow]{warning}[/yellow]")
