"""Runs stages as Ray jobs: the same command, on a cluster that does not need this package installed."""

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from askd_ray.config.load import dump_recipe, with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError, did_you_mean
from askd_ray.files import local_path
from askd_ray.progress import console
from askd_ray.provenance import git_sha
from askd_ray.ray_cluster import auth_token, package_folder

STAGES = ("prepare", "label", "distill", "tune", "export", "evaluate")
_RECIPE = "recipe.yaml"
_STARTING, _STARTING_S, _RETRY_S = "No available agent", 60.0, 1.0
# These loggers report each upload and the end of the log.
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


def submit(stage: str, recipe: Recipe, address: str, follow: bool = True) -> int:
    """Run ``askd STAGE`` with ``recipe`` as a job of the cluster with its dashboard at ``address``.

    The package and the resolved recipe are uploaded with the job. Data, runs and models are not: their paths become
    absolute, and the cluster's nodes must have them at these paths. With ``follow``, print the job's output and return
    its exit code. Without, return 0 as soon as the cluster has accepted the job.

    Raises :class:`AskdError` for an unknown stage, and when the cluster cannot be reached or refuses the job.
    """
    if stage not in STAGES:
        hint = did_you_mean(stage, list(STAGES))
        raise AskdError(f"no stage {stage!r} to submit: allowed are {', '.join(STAGES)}{hint}")
    client = _client(address)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="askd-job-") as folder:
        (Path(folder) / _RECIPE).write_text(dump_recipe(with_absolute_paths(recipe)), encoding="utf-8")
        try:
            job_id = _submit(client, f"python -m askd_ray {stage} --recipe {_RECIPE}", _runtime_env(folder))
        except (RuntimeError, ConnectionError) as error:
            raise AskdError(f"the cluster at {address} refused the job: {_one_line(error)}") from None
    console.print(f"job {job_id} runs at {address}; `ray job stop {job_id} --address {address}` stops it")
    return _follow(client, job_id) if follow else 0


def _submit(client: JobSubmissionClient, command: str, runtime_env: dict[str, Any]) -> str:
    """Submit a job; retry for some time, since a new cluster does not accept jobs in its first seconds."""
    give_up = time.monotonic() + _STARTING_S
    while True:
        try:
            return client.submit_job(entrypoint=command, runtime_env=runtime_env)
        except RuntimeError as error:
            if _STARTING not in str(error) or time.monotonic() >= give_up:
                raise
        time.sleep(_RETRY_S)


def _runtime_env(folder: str) -> dict[str, Any]:
    variables: dict[str, str] = {}
    if "ASKD_CACHE" in os.environ:
        variables["ASKD_CACHE"] = str(local_path(os.environ["ASKD_CACHE"]).resolve())
    sha = git_sha()
    if sha is not None:  # the job's copy of the package is not in a git checkout
        variables["ASKD_GIT_SHA"] = sha
    if sys.prefix != sys.base_prefix:
        # If the head node was started without its virtual environment, its `python` is another one, or missing.
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}${{PATH}}"
    return {"working_dir": folder, "py_modules": [str(package_folder())], "env_vars": variables}


def _client(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise AskdError(f"--address {address}: the dashboard's URL is expected, such as http://127.0.0.1:8265")
    try:
        with _preferred(address):
            try:
                return JobSubmissionClient(address)
            except AuthenticationError:  # the cluster needs a token: send the user's token, to this cluster only
                token = auth_token()
                if token is None:
                    raise
                return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        raise AskdError(f"the cluster at {address} needs another token: {_one_line(error)}") from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise AskdError(f"no Ray cluster at {address}: {_one_line(error)}") from None


@contextmanager
def _preferred(address: str) -> Generator[None]:
    """Give the requested address priority: otherwise Ray's client uses RAY_ADDRESS."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    asyncio.run(_print_log(client, job_id))
    info = client.get_job_info(job_id)
    if info.driver_exit_code is not None:
        return info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return 0
    console.print(f"job {job_id}: {info.status}: {info.message or ''}")  # the job never ran, or was stopped
    return 1


async def _print_log(client: JobSubmissionClient, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        sys.stdout.write(text)
        sys.stdout.flush()
