"""Starts or joins a Ray cluster; no other module does."""

import logging
import os
import secrets
import socket
from pathlib import Path

import psutil
import ray
from ray.exceptions import AuthenticationError

from askd_ray.errors import AskdError

_MIN_CPUS = 4
_PROBE_S = 5.0
_OBJECT_STORE_SHARE = 16  # of the machine's memory: 512 MB on a laptop with 8 GB
_MAX_OBJECT_STORE_BYTES = 1 << 30
SETTINGS = {  # Ray reads them at import or when a process starts, so they must be environment variables
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "askd_ray.serve.proxy:middlewares",
    "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": "3600",  # engines stop after the ingress, whose requests may take long
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else a search that Ctrl-C ends looks finished
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's old output can be switched off
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each worker without a GPU warns about a future change
}
_connected_node: str | None = None  # this process's node in the cluster that connect() started or joined


def connect(num_cpus: int | None = None, *, use_gpu: bool = False) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (Ray sets it inside a job), or start a local cluster.

    It does nothing where Ray is initialised already. A local cluster is for this process and its child processes. Ray's
    ports listen on the machine's address, so clients need a token (`Ray's token authentication
    <https://docs.ray.io/en/latest/ray-security/token-auth.html>`_). If the user has set up no token, a random one is
    used for this process only; nothing is written to the home folder.

    ``num_cpus`` are logical CPUs: how many workers, data tasks and trials may run at the same time. The default is at
    least 4: with fewer, a training worker would hold the CPUs that its data tasks wait for.

    With ``use_gpu``, a local cluster must have a GPU; this is checked before it starts. A joined cluster may add GPUs.

    Raises :class:`AskdError` when the cluster of ``RAY_ADDRESS`` cannot be joined, and when there is no GPU.
    """
    address = os.environ.get("RAY_ADDRESS")
    if use_gpu and not address:
        from askd_ray.torch_setup import check_cuda  # torch takes seconds to import, and most callers do not need it

        check_cuda()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        if address:
            _join(address)
        else:
            _start(num_cpus)
        global _connected_node
        _connected_node = ray.get_runtime_context().get_node_id()
    if use_gpu and not address and not ray.cluster_resources().get("GPU"):
        raise AskdError("train.workers.gpu needs a GPU, but Ray finds none on this machine: check CUDA_VISIBLE_DEVICES")


def disconnect() -> None:
    """Leave the cluster that :func:`connect` joined, or end the one that it started; leave any other as it is."""
    if ray.is_initialized() and ray.get_runtime_context().get_node_id() == _connected_node:
        ray.shutdown()


def cpus_by_node() -> list[float]:
    """Return the logical CPUs of each node that has some; a cluster that grows from zero gets its first node now."""
    while not (cpus := [n["Resources"]["CPU"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]):
        # Only a task that waits makes an autoscaler add a node, and no node can be asked for by its size.
        ray.get(ray.remote(num_cpus=1)(_nothing).remote())
    return cpus


def default_cpus() -> int:
    """Return the number of logical CPUs of a local cluster."""
    return max(_MIN_CPUS, os.cpu_count() or 1)


def package_folder() -> Path:
    """Return the folder of this package, for clusters where it is not installed."""
    return Path(__file__).resolve().parent


def auth_token() -> str | None:
    """Return the user's token for Ray clusters, from the places where Ray looks for it, or None."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _join(address: str) -> None:
    if "://" in address:
        raise AskdError(
            f"RAY_ADDRESS={address}: a stage joins a cluster by host:port (of `ray start`); for a dashboard's address, "
            "unset it and use `askd submit STAGE --address`"
        )
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for two minutes
            socket.create_connection((host, int(port)), _PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise AskdError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from None
    try:
        ray.init(address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; if it needs a token, set RAY_AUTH_MODE=token"
        raise AskdError(f"cannot join the cluster at RAY_ADDRESS={address}: {reason}{hint}") from None


def _start(num_cpus: int | None) -> None:
    if "RAY_AUTH_MODE" not in os.environ and auth_token() is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # hide harmless errors during the start
    memory = psutil.virtual_memory().total // _OBJECT_STORE_SHARE
    ray.init(
        "local",
        num_cpus=num_cpus or default_cpus(),
        object_store_memory=min(memory, _MAX_OBJECT_STORE_BYTES),
        include_dashboard=True,  # Train and Tune free their resources through its state API
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
    )


def _python_path() -> str:
    """Return a PYTHONPATH with which workers can import the package from a checkout that is not installed."""
    return os.pathsep.join(filter(None, [str(package_folder().parent), os.environ.get("PYTHONPATH")]))


def _nothing() -> None:
    """A task that only needs a CPU."""
