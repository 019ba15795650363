"""The one place where a Ray cluster is started or joined."""

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
SETTINGS = {  # read by Ray when it is imported or when a process starts, so they go through the environment
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "askd_ray.serve.proxy:middlewares",
    "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": "3600",  # engines go after the ingress, whose requests may take long
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # or Ctrl-C would end a search as if it had been finished
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's other screen, the one that is silent when told to
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or each worker without a GPU warns about a coming change
}


def connect(num_cpus: int | None = None, *, use_gpu: bool = False) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (as it does inside a Ray job), else start one on this machine.

    A second call does nothing. The cluster of one's own is for this process and those that it starts: Ray's ports
    listen on the machine's address, so whoever connects must know a token (`Ray's token authentication
    <https://docs.ray.io/en/latest/ray-security/token-auth.html>`_). Where the user has set up no token, one is drawn
    for this process only, and nothing is written to the home folder.

    ``num_cpus`` are logical: how many workers, data tasks and trials may run side by side. By default at least 4, since
    on fewer a training worker holds what its own data tasks wait for.

    With ``use_gpu`` there must be a GPU: a cluster that is joined may grow, one's own does not, and this is said before
    it is started.

    Raises :class:`AskdError` when the cluster of ``RAY_ADDRESS`` cannot be joined, and when there is no GPU.
    """
    address = os.environ.get("RAY_ADDRESS")
    if use_gpu and not address:
        from askd_ray.torch_setup import check_cuda  # torch takes seconds to import, and most callers do without

        check_cuda()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        if address:
            _join(address)
        else:
            _start(num_cpus)
    if use_gpu and not address and not ray.cluster_resources().get("GPU"):
        raise AskdError("a GPU is asked for, and Ray finds none on this machine: is CUDA_VISIBLE_DEVICES set?")


def disconnect() -> None:
    """Leave the cluster; one that :func:`connect` started ends."""
    ray.shutdown()


def package_folder() -> Path:
    """Return the folder of the package, for clusters that do not have it installed."""
    return Path(__file__).resolve().parent


def auth_token() -> str | None:
    """Return the user's token for Ray clusters from where Ray itself looks for it, or None where there is none."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _join(address: str) -> None:
    if "://" in address:
        raise AskdError(
            f"RAY_ADDRESS={address}: a stage joins a cluster by host:port (of `ray start`); unset it and use "
            "`askd submit STAGE --address` for the address of a dashboard"
        )
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for two minutes before it says that nobody listens
            socket.create_connection((host, int(port)), _PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise AskdError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from None
    try:
        ray.init(address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; if it wants a token, set RAY_AUTH_MODE=token"
        raise AskdError(f"cannot join the cluster at RAY_ADDRESS={address}: {reason}{hint}") from None


def _start(num_cpus: int | None) -> None:
    if "RAY_AUTH_MODE" not in os.environ and auth_token() is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors on a healthy start only frighten
    memory = psutil.virtual_memory().total // _OBJECT_STORE_SHARE
    ray.init(
        "local",
        num_cpus=num_cpus or max(_MIN_CPUS, os.cpu_count() or 1),
        object_store_memory=min(memory, _MAX_OBJECT_STORE_BYTES),
        include_dashboard=True,  # Train and Tune free their resources through its state API
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
    )


def _python_path() -> str:
    """Let workers import the package also where it runs from a checkout that is not installed."""
    return os.pathsep.join(filter(None, [str(package_folder().parent), os.environ.get("PYTHONPATH")]))
