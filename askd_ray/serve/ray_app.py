"""The service on Ray Serve: one deployment that is both the HTTP ingress and the engine.

One deployment rather than two, since the hop between them costs more (some 5 ms) than a student needs for a short clip;
replicas are how it scales.
"""

import asyncio
import contextlib
import io
import logging
import signal
import socket
import threading
import time
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from askd_ray.errors import AskdError
from askd_ray.models.bundle import Device, read_bundle
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.serve.engine import open_bundle
from askd_ray.serve.openai_api import RUNNING, WAITING, build_app

APP_NAME = "askd"
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_REPORT_S = 0.5  # until Ray's report of it has come
_REFUSED = 16  # requests beyond the line that the app still answers itself, in OpenAI's form, and /health


class ServiceArgs(BaseModel):
    """What a deployment is built from: ``args`` in cluster/serve.yaml. ``threads`` = 0 takes all cores."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    name: str | None = None
    device: Device = "cpu"
    threads: int = Field(default=0, ge=0)
    replicas: int = Field(default=1, ge=1)


class Service:
    """A replica: it loads the model once, warms it up, and serves the OpenAI API with it."""

    def __init__(self, args: ServiceArgs):
        self._engine = open_bundle(Path(args.bundle), args.device, args.threads)
        self._engine.name = args.name or self._engine.name
        self._engine.check()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls it after the constructor."""
        return build_app(self._engine)

    async def check_health(self) -> None:
        """Let Serve replace a replica whose inference fails or hangs."""
        await asyncio.to_thread(self._engine.check)


def build(args: ServiceArgs) -> serve.Application:
    """Return the Serve application: what ``import_path: askd_ray.serve.ray_app:build`` deploys."""
    deployed = serve.deployment(
        name=Service.__name__,
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if args.device == "cuda" else 0},
        max_ongoing_requests=RUNNING + WAITING + _REFUSED,
        max_queued_requests=_REFUSED,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=30,
        health_check_timeout_s=60,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return deployed(serve.ingress()(Service)).bind(args)


def serve_bundle(
    bundle: Path, host: str = "127.0.0.1", port: int = 8000, name: str | None = None, blocking: bool = True
) -> str:
    """Serve a bundle (or a bare CTranslate2 Whisper folder) and return the URL, once it answers.

    With ``blocking`` it serves until Ctrl-C or a termination signal, and then ends what it started; without, the
    caller calls :func:`stop_serving`. ``name`` is what clients ask for as ``model``, by default the bundle's own.

    Raises :class:`AskdError` when there is no model in the folder or the port is taken.
    """
    info = read_bundle(bundle)
    _check_port(host, port)
    connect()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    try:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=host, port=port))
        serve.run(build(ServiceArgs(bundle=str(bundle.resolve()), name=name)), name=APP_NAME, route_prefix="/")
        _say_ready(url, name or info.name, host)
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


def _say_ready(url: str, name: str, host: str) -> None:
    console.print(f"Serving [bold]{name}[/bold] at {url} (Ctrl-C ends it). Try:")
    console.print(f"  curl {url}/v1/audio/transcriptions -F file=@speech.wav -F model={name}")
    if host not in _LOOPBACK:
        console.print(f"[yellow]It listens on {host}: whoever reaches this machine may use it, without a key.[/yellow]")
