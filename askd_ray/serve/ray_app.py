"""The service on Ray Serve: an ingress that speaks HTTP, and engines that hear.

A file goes to the ingress, which decodes it, finds the speech and asks the engines for one stretch after another; an
engine replica batches the stretches of all requests. A replica that dies costs a request some time, not its answer.
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
from askd_ray.serve.engine import ServedModels, allocate_hardware
from askd_ray.serve.listener import Address, listening
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.registry import Registry
from askd_ray.serve.sandbox import Sandbox
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.swap import Follower, load_verified
from askd_ray.serve.transcription_service import BusyError, ChunkResult, Model, TranscribeOptions, TranscriptionService

APP_NAME = "askd"
_REPORT_S = 0.5  # until Ray's report of it has come
_RETRY_S = 0.2
_CHECK_S = 1  # how often Serve asks whether a replica lives: it learns of a dead one no sooner
_PROVEN_S = 10.0  # so long an engine that has heard something is believed to be well
_NO_LIMIT = 100_000  # of requests that Serve lets through: the app refuses what is too much itself, in OpenAI's form
_CARDS_S = 1.0  # how long the list of models is believed


class EngineReplica:
    """A replica: it loads the models once, warms them up, and hears stretches with them."""

    def __init__(self, args: ServiceArgs):
        hardware = allocate_hardware(args.bundles()[0][1], args.device, args.threads)
        self._models = ServedModels(hardware.workers)
        for name, bundle in args.models.items():
            self._models.put(load_verified(Path(bundle), name, hardware))
        if args.registry is not None:
            follower = Follower(self._models, Registry(Path(args.registry)), hardware)
            follower.load_all()
            follower.start()

    async def hear(self, stretch: Waveform, ask: TranscribeOptions, owner: str) -> ChunkResult:
        """Return what is said in a stretch."""
        return await self._models.hear(stretch, ask, owner)

    async def models(self) -> Sequence[Model]:
        """Return what is served."""
        return await self._models.models()

    async def check(self) -> None:
        """Run a tiny inference with each model."""
        await self._models.check()

    async def check_health(self) -> None:
        """Let Serve replace a replica whose inference fails or hangs; one that has just heard something does not."""
        if time.monotonic() - self._models.heard_at >= _PROVEN_S:
            await self._models.check()


class RaySpeechEngine:
    """The engine replicas, as the recogniser sees them."""

    def __init__(self, engines: DeploymentHandle[EngineReplica], patience_s: float):
        # In the call, by gRPC: by the object store a clip of some seconds takes 10 ms longer.
        self._engines, self._patience_s = engines.options(_by_reference=False), patience_s
        self._cards: Sequence[Model] = ()
        self._cards_at = -_CARDS_S

    async def models(self) -> Sequence[Model]:
        """Return what is served; the list is a second old at most."""
        if time.monotonic() - self._cards_at >= _CARDS_S:
            self._cards = await self._call("models")
            self._cards_at = time.monotonic()
        return self._cards

    async def hear(self, stretch: Waveform, ask: TranscribeOptions, owner: str) -> ChunkResult:
        """Return what is said in a stretch."""
        return await self._call("hear", stretch, ask, owner)

    async def check(self) -> None:
        """Let a replica hear silence."""
        await self._call("check")

    async def _call(self, method: str, *args: Any) -> Any:
        """Call a replica; when it dies another one is asked. A caller who goes takes the call along."""
        give_up = time.monotonic() + self._patience_s
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
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(_RETRY_S)


class Ingress:
    """A replica that speaks HTTP: with Serve's proxies, or where it ``listens`` itself."""

    def __init__(self, args: ServiceArgs, engines: DeploymentHandle[EngineReplica], listens: Address | None):
        self._limits = RequestLimits(args.requests, args.request_s, keys=args.keys(), origins=args.origins)
        self._recogniser = TranscriptionService(RaySpeechEngine(engines, args.request_s), Sandbox(), args.audio_s)
        self._listens = listens
        self._drain: Callable[[], Awaitable[None]] | None = None

    async def drain(self) -> None:
        """Take no request any more, and return when those in flight are answered; with Serve's proxies, at once."""
        if self._drain is not None:
            await self._drain()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls it after the constructor."""
        return build_app(self._recogniser, self._limits, ServiceMetrics(), self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """What Serve runs around the app: it ends once the requests are done that it knows of."""
        if self._listens is None:
            yield
        else:
            async with listening(app, self._listens, self._limits.longest_s) as self._drain:
                yield


def build(args: ServiceArgs) -> serve.Application:
    """Return the Serve application: what ``import_path: askd_ray.serve.ray_app:build`` deploys.

    Requests come to it through Serve's proxies.
    """
    return _application(args, None)


def _application(args: ServiceArgs, listens: Address | None) -> serve.Application:
    """Return the application. With ``listens``, its ingress is on this node and no proxy is needed.

    A proxy is a process more on the way of each request, and it hands a body on piece by piece: for a clip of some
    seconds that is more than all the rest of the way (docs/LOG.md).
    """
    common: dict[str, Any] = {
        "health_check_period_s": _CHECK_S,
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": RequestLimits(request_s=args.request_s).longest_s + 10,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    }
    most = args.max_engines or args.engines
    engines = serve.deployment(
        name="Engine",
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.engines, max_replicas=most, target_ongoing_requests=4, upscale_delay_s=5
        ),
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if args.device == "cuda" else 0},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(EngineReplica).bind(args)
    here = {} if listens is None else {f"node:{ray.util.get_node_ip_address()}": 0.001}
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1, "resources": here},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, engines, listens)


def serve_bundles(args: ServiceArgs, address: Address, blocking: bool = True) -> str:
    """Serve bundles (or bare CTranslate2 Whisper folders) and return the URL, once it answers.

    With ``blocking`` it serves until Ctrl-C or a termination signal, and then ends what it started; without, the
    caller calls :func:`stop_serving`.

    Raises :class:`AskdError` when there is no model in a folder or the port is taken.
    """
    names = args.check()
    with address.reserved():
        hardware = allocate_hardware(args.bundles()[0][1], args.device, args.threads)
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
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler prints a stack
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping, once the requests in flight are answered (Ctrl-C again: within 30 s)")
    finally:
        if blocking:
            try:
                stop_serving()
            finally:
                disconnect()


def _deploy(application: serve.Application) -> None:
    try:
        serve.run(application, name=APP_NAME, route_prefix="/")
    except RuntimeError:  # it says which deployment did not start; only the status says why
        deployments = serve.status().applications[APP_NAME].deployments.values()
        error = from_text("\n".join(deployment.message for deployment in deployments))
        if error is None:
            raise
        raise error from None


def stop_serving() -> None:
    """End the service, its requests in flight first; the cluster that it ran on goes on.

    Serve by itself gives them 30 s. A second Ctrl-C, or signal, gives them no more than that.
    """
    with contextlib.suppress(KeyboardInterrupt):
        _answer_those_in_flight()
    with contextlib.redirect_stdout(io.StringIO()):  # Serve kills its controller, and Ray reports that as a failure
        serve.shutdown()
        time.sleep(_REPORT_S)


def _answer_those_in_flight() -> None:
    app = serve.status().applications.get(APP_NAME)
    ingress = app.deployments.get("Ingress") if app else None
    if ingress is None or not any(state == "RUNNING" and n for state, n in ingress.replica_states.items()):
        return  # it starts, or is gone: nobody is being answered
    with contextlib.suppress(ray.exceptions.RayActorError):  # it died meanwhile
        serve.get_app_handle(APP_NAME).drain.remote().result()


def _say_ready(address: Address, names: Sequence[str], has_keys: bool) -> None:
    url = address.url
    name, *others = names
    also = f" and {', '.join(others)}" if others else ""
    console.print(f"Serving [bold]{name}[/bold]{also} at {url} (Ctrl-C ends it). Try:")
    console.print(f"  curl {url}/v1/audio/transcriptions -F file=@speech.wav -F model={name}")
    console.print(f"  or open {url} in a browser")
    if not (address.is_loopback or has_keys):
        risk = f"It listens on {address.host}: whoever reaches this machine may use it, without a key."
        console.print(f"[yellow]{risk}[/yellow]")
