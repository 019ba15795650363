"""The service on Ray Serve: an ingress deployment for HTTP and an engine deployment for the models.

The ingress decodes a file, detects the speech and sends chunks to the engine replicas. An engine replica batches the
chunks of all requests. The number of replicas of both follows the load.
"""

import contextlib
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray.exceptions
import ray.util
from ray import serve
from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.schema import LoggingConfig

from askd_ray.errors import AskdError
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, default_cpus, disconnect
from askd_ray.ray_errors import from_text
from askd_ray.serve.listener import Address
from askd_ray.serve.live.websocket import FINISH_S, SESSION_S
from askd_ray.serve.openai_api import RequestLimits
from askd_ray.serve.ray_engine import EngineReplica
from askd_ray.serve.ray_ingress import Ingress
from askd_ray.serve.settings import ServiceArgs

APP_NAME = "askd"
_REPORT_S = 0.5  # time for Ray to print its report of the killed controller
_CHECK_S = 1  # period of Serve's health checks, by which it notices a dead replica
_NO_LIMIT = 100_000  # of requests in Serve: the app enforces the limit, with errors in OpenAI's format
_UPSCALE_S = 5  # how long a load must last before another replica starts
_STOP_S = 10  # for the rest of a replica's end, after its last request


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
    longest_s = RequestLimits(request_s=args.request_s).longest_s
    common: dict[str, Any] = {
        "health_check_period_s": _CHECK_S,
        "health_check_timeout_s": 60,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_ongoing_requests": _NO_LIMIT,
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    }
    engines = serve.deployment(
        name="Engine",
        autoscaling_config=_autoscaling(args.engines, args.max_engines, args.chunks_per_engine()),
        ray_actor_options={"num_cpus": 1, "num_gpus": args.gpus_per_engine if args.device == "cuda" else 0},
        graceful_shutdown_timeout_s=longest_s + _STOP_S,
        **common,
    )(EngineReplica).bind(args, direct=True)
    resources = {} if address is None else {f"node:{ray.util.get_node_ip_address()}": 0.001}
    scales = (args.max_ingresses or args.ingresses) > args.ingresses
    ingress = serve.deployment(
        name="Ingress",
        autoscaling_config=_autoscaling(args.ingresses, args.max_ingresses, args.requests_per_ingress()),
        ray_actor_options={"num_cpus": args.ingress_cpus, "resources": resources},
        # A replica that autoscaling stops keeps its sessions of live captions until they end.
        graceful_shutdown_timeout_s=(max(longest_s, SESSION_S + FINISH_S) if scales else longest_s) + _STOP_S,
        **common,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, engines, address)


def _autoscaling(min_replicas: int, max_replicas: int | None, target_requests: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=min_replicas,
        max_replicas=max_replicas or min_replicas,
        target_ongoing_requests=target_requests,
        upscale_delay_s=_UPSCALE_S,
    )


def serve_bundles(args: ServiceArgs, address: Address, blocking: bool = True) -> str:
    """Serve bundles (or plain CTranslate2 Whisper folders); return the URL when the service is ready.

    With ``blocking``, serve until Ctrl-C or a termination signal, then stop everything. Without, the caller calls
    :func:`stop_serving`.

    Raises :class:`AskdError` when a folder holds no model or the port is in use, and for ``max_ingresses``: Serve
    counts the requests of its proxies only, so here the number of ingress replicas is fixed. They share the port.
    """
    names = args.check()
    if args.max_ingresses is not None:
        raise AskdError(
            f"max_ingresses = {args.max_ingresses}: without Serve's proxies the number of ingresses is fixed; use "
            "`serve deploy` (docs/serving.md), or ingresses alone"
        )
    with address.reserved() as address:
        hardware = args.hardware()  # timed once, not in each engine
        _run(args.model_copy(update={"threads": hardware.threads}), names, address, blocking)
    return address.url


def _run(args: ServiceArgs, names: Sequence[str], address: Address, blocking: bool) -> None:
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other process delay the answers
    connect(max(default_cpus(), args.cpus()), use_gpu=args.device == "cuda")
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
    for answer in serve.get_app_handle(APP_NAME).broadcast("drain").results(return_exceptions=True):
        if isinstance(answer, Exception) and not isinstance(answer, ray.exceptions.RayActorError):  # died meanwhile
            raise answer


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
