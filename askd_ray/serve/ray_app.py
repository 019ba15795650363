"""The service on Ray Serve: an ingress that speaks HTTP, and engines that hear.

A file goes to the ingress, which decodes it, finds the speech and asks the engines for one stretch after another; an
engine replica batches the stretches of all requests. A replica that dies costs a request some time, not its answer.
"""

import asyncio
import contextlib
import io
import logging
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.exceptions
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from askd_ray.audio.decode import Waveform
from askd_ray.errors import AskdError
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.serve.engine import Models
from askd_ray.serve.metrics import Metrics
from askd_ray.serve.openai_api import Limits, build_app
from askd_ray.serve.recogniser import Ask, BusyError, Hearing, Model, Recogniser
from askd_ray.serve.registry import Registry
from askd_ray.serve.sandbox import Sandbox
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.swap import Follower, load_verified

APP_NAME = "askd"
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_REPORT_S = 0.5  # until Ray's report of it has come
_RETRY_S = 0.2
_NO_LIMIT = 100_000  # of requests that Serve lets through: the app refuses what is too much itself, in OpenAI's form
_CARDS_S = 1.0  # how long the list of models is believed


class EngineReplica:
    """A replica: it loads the models once, warms them up, and hears stretches with them."""

    def __init__(self, args: ServiceArgs):
        self._models = Models()
        for name, bundle in args.models.items():
            self._models.put(load_verified(Path(bundle), name, args.device, args.threads))
        if args.registry is not None:
            follower = Follower(self._models, Registry(Path(args.registry)), args.device, args.threads)
            follower.load_all()
            follower.start()

    async def hear(self, stretch: Waveform, ask: Ask, owner: str) -> Hearing:
        """Return what is said in a stretch."""
        return await self._models.hear(stretch, ask, owner)

    async def models(self) -> Sequence[Model]:
        """Return what is served."""
        return await self._models.models()

    async def check_health(self) -> None:
        """Let Serve replace a replica whose inference fails or hangs."""
        await self._models.check()


class RayEars:
    """The engine replicas, as the recogniser sees them."""

    def __init__(self, engines: DeploymentHandle[EngineReplica], patience_s: float):
        self._engines, self._patience_s = engines, patience_s
        self._cards: Sequence[Model] = ()
        self._cards_at = -_CARDS_S

    async def models(self) -> Sequence[Model]:
        """Return what is served; the list is a second old at most."""
        if time.monotonic() - self._cards_at >= _CARDS_S:
            self._cards = await self._call("models")
            self._cards_at = time.monotonic()
        return self._cards

    async def hear(self, stretch: Waveform, ask: Ask, owner: str) -> Hearing:
        """Return what is said in a stretch."""
        return await self._call("hear", stretch, ask, owner)

    async def check(self) -> None:
        """Let a replica hear silence."""
        await self._call("check_health")

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
    """A replica that speaks HTTP."""

    def __init__(self, args: ServiceArgs, engines: DeploymentHandle[EngineReplica]):
        self._limits = Limits(args.requests, args.request_s, args.keys(), args.origins)
        self._recogniser = Recogniser(RayEars(engines, args.request_s), Sandbox(), args.audio_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls it after the constructor."""
        return build_app(self._recogniser, self._limits, Metrics())


def build(args: ServiceArgs) -> serve.Application:
    """Return the Serve application: what ``import_path: askd_ray.serve.ray_app:build`` deploys."""
    common: dict[str, Any] = {
        "health_check_period_s": 10,
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": args.request_s + 10,  # longer than the longest request
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    }
    most = args.most_engines or args.engines
    engines = serve.deployment(
        name="Engine",
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.engines, max_replicas=most, target_ongoing_requests=4, upscale_delay_s=5
        ),
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if args.device == "cuda" else 0},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(EngineReplica).bind(args)
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=_NO_LIMIT,
        **common,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, engines)


def serve_bundles(args: ServiceArgs, host: str = "127.0.0.1", port: int = 8000, blocking: bool = True) -> str:
    """Serve bundles (or bare CTranslate2 Whisper folders) and return the URL, once it answers.

    With ``blocking`` it serves until Ctrl-C or a termination signal, and then ends what it started; without, the
    caller calls :func:`stop_serving`.

    Raises :class:`AskdError` when there is no model in a folder or the port is taken.
    """
    names = args.check()
    _check_port(host, port)
    connect()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    try:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=host, port=port))
        serve.run(build(args), name=APP_NAME, route_prefix="/")
        _say_ready(url, names, bool(args.keys()), host)
        if blocking:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler prints a stack
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        if blocking:
            stop_serving()
            disconnect()
    return url


def stop_serving() -> None:
    """End the service, its requests in flight first; the cluster that it ran on goes on."""
    with contextlib.redirect_stdout(io.StringIO()):  # Serve kills its controller, and Ray reports that as a failure
        serve.shutdown()
        time.sleep(_REPORT_S)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AskdError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from None


def _say_ready(url: str, names: Sequence[str], has_keys: bool, host: str) -> None:
    name, *others = names
    also = f" and {', '.join(others)}" if others else ""
    console.print(f"Serving [bold]{name}[/bold]{also} at {url} (Ctrl-C ends it). Try:")
    console.print(f"  curl {url}/v1/audio/transcriptions -F file=@speech.wav -F model={name}")
    console.print(f"  or open {url} in a browser")
    if host not in _LOOPBACK and not has_keys:
        console.print(f"[yellow]It listens on {host}: whoever reaches this machine may use it, without a key.[/yellow]")
