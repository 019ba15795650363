"""The MLflow mirror, with ``tracking.mlflow``: an MLflow run that follows the run's folder.

The training itself sends nothing. The process that started it reads metrics.jsonl and sends new metrics to MLflow. A
slow or unreachable tracking server delays no step; it gets the missing metrics when it answers again.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from askd_ray.config.load import without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.config.tracking import Tracking
from askd_ray.errors import AskdError
from askd_ray.files import local_path, sha256_of_file, to_json
from askd_ray.location import Location
from askd_ray.progress import console
from askd_ray.provenance import git_sha
from askd_ray.runs import Run
from askd_ray.train.track import StepMetrics, follow

_STATE = "mlflow.json"  # in the training's folder: the id of the MLflow run, and the files that it has
_INTERVAL_S = 5.0
_MAX_INTERVAL_S = 300.0  # while the server does not answer
_METRICS_PER_REQUEST, _PARAMS_PER_REQUEST = 1000, 100  # MLflow's limits for one request
_REASON_CHARS = 200
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # send data only to the recipe's server
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # the next attempt sends what failed: MLflow need not retry for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # we print the URL ourselves
}


def check_installed(tracking: Tracking) -> None:
    """Raise :class:`AskdError` when the recipe asks for MLflow and MLflow is not installed."""
    if tracking.mlflow is not None and find_spec("mlflow") is None:
        raise AskdError("tracking.mlflow needs MLflow, which is not installed: pip install 'askd-ray[mlflow]'")


class MlflowRun:
    """The MLflow run of a training, created if there is none yet. It sends nothing twice.

    The metrics of a step carry the step's time, and MLflow keeps one of several equal entries. So a request that is
    repeated after a timeout duplicates nothing. Every method raises what MLflow raises.
    """

    def __init__(self, run: Run):
        self._run = run
        self._client = _client(run.recipe.tracking)
        self._state = self._read_state() or self._create()
        self.id: str = self._state["run_id"]
        mlflow_run = self._client.get_run(self.id)
        if mlflow_run.info.status != "RUNNING" and run.record("distill") is None:
            self._client.update_run(self.id, status="RUNNING")  # it was killed or failed, and resumes
        self._send_params(mlflow_run.data.params)
        self._metrics = follow(run, after=int(mlflow_run.data.metrics.get("step", 0)))
        self._waiting: list[StepMetrics] = []

    @property
    def _state_file(self) -> Location:
        return self._run.place / "distill" / _STATE

    def _read_state(self) -> dict[str, Any] | None:
        file = self._state_file
        state = json.loads(file.read_bytes()) if file.is_file() else None
        return state if state is not None and state["uri"] == self._run.recipe.tracking.mlflow else None

    def _create(self) -> dict[str, Any]:
        tracking, sha = self._run.recipe.tracking, git_sha()
        experiment = self._client.get_experiment_by_name(tracking.experiment)
        tags = {"mlflow.source.name": "askd distill"} | ({"mlflow.source.git.commit": sha} if sha is not None else {})
        created = self._client.create_run(
            experiment.experiment_id if experiment is not None else self._create_experiment(tracking),
            run_name=self._run.recipe.name,
            tags=tags,
        )
        state = {"uri": tracking.mlflow, "run_id": created.info.run_id, "files": {}}
        self._state_file.write_bytes(to_json(state).encode())
        return state

    def _create_experiment(self, tracking: Tracking) -> str:
        artifacts = None if tracking.is_server else (_folder(tracking) / "artifacts").as_uri()
        return self._client.create_experiment(tracking.experiment, artifact_location=artifacts)

    def _send_params(self, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in flatten_recipe(self._run.recipe).items() if name not in known]
        for start in range(0, len(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(self.id, params=params[start : start + _PARAMS_PER_REQUEST])

    def send_metrics(self, stop: threading.Event | None = None) -> None:
        """Send the metrics that MLflow does not have yet; return early, between two requests, once ``stop`` is set."""
        self._waiting += self._metrics.new()
        while self._waiting and not (stop is not None and stop.is_set()):
            n = 0
            entries: list[Any] = []
            for line in self._waiting:  # one request has all metrics of a step, so a step in MLflow is complete
                of_step = list(_entries(line))
                if entries and len(entries) + len(of_step) > _METRICS_PER_REQUEST:
                    break
                entries += of_step
                n += 1
            self._client.log_batch(self.id, metrics=entries)
            del self._waiting[:n]

    def send_files(self, files: Mapping[str, Path]) -> None:
        """Send new and changed files; the keys are their paths in MLflow."""
        sent: dict[str, str] = self._state["files"]
        for name, path in files.items():
            digest = sha256_of_file(path)
            if sent.get(name) != digest:
                self._client.log_artifact(self.id, str(path), name.rpartition("/")[0] or None)
                sent[name] = digest
                self._state_file.write_bytes(to_json(self._state).encode())

    def end(self, status: str) -> None:
        """Set the final status: ``FINISHED`` or ``FAILED``."""
        self._client.set_terminated(self.id, status)


class mirrored:  # noqa: N801  # a context manager, used like a function
    """Sends the metrics of a training to MLflow while the block runs; does nothing without ``tracking.mlflow``.

    An MLflow error never stops the block: it prints one line.
    """

    def __init__(self, run: Run):
        self._run, self._stop, self._failed = run, threading.Event(), False
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        if self._run.recipe.tracking.mlflow is not None:
            self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = kind is not None
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()  # waits for one request at most, which has a timeout

    def _follow(self) -> None:
        mlflow_run, warned, pause_s = None, False, 0.0
        while not self._stop.wait(pause_s):
            try:
                mlflow_run = mlflow_run or MlflowRun(self._run)
                mlflow_run.send_metrics(self._stop)
                pause_s = _INTERVAL_S
            except Exception as error:
                mlflow_run, pause_s = None, min(max(2 * pause_s, _INTERVAL_S), _MAX_INTERVAL_S)
                if not warned:
                    _warn(
                        self._run, error, "the training continues; metrics.jsonl keeps the metrics until MLflow answers"
                    )
                warned = True
        if self._failed:
            try:
                (mlflow_run or MlflowRun(self._run)).end("FAILED")
            except Exception as error:
                _warn(self._run, error, "MLflow does not know that the training failed")


def send_finished_run(run: Run, files: Mapping[str, Path]) -> None:
    """Send everything that MLflow lacks of a finished training, and ``files`` by their paths in MLflow.

    Does nothing without ``tracking.mlflow``; prints one line on an error.
    """
    if run.recipe.tracking.mlflow is None:
        return
    try:
        check_installed(run.recipe.tracking)
        with console.status("MLflow"):
            mlflow_run = MlflowRun(run)
            mlflow_run.send_metrics()
            mlflow_run.send_files(files)
            mlflow_run.end("FINISHED")
        console.print(f"MLflow: run {mlflow_run.id} in {run.recipe.tracking.mlflow}")
    except Exception as error:
        _warn(run, error, "MLflow does not have all of this run; `askd export` sends the rest")


def flatten_recipe(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's values as text, without credentials, by paths such as ``train.optimizer.lr``.

    Sections in a list are numbered.
    """
    values: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else str(name))
        else:
            values[path] = value if isinstance(value, str) and value else json.dumps(value)

    walk(without_secrets(recipe).model_dump(mode="json"), "")
    return values


def _client(tracking: Tracking) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # they log every created table and every retried request
        logging.getLogger(name).setLevel(logging.ERROR)
    if tracking.is_server:
        return MlflowClient(tracking_uri=tracking.mlflow)
    folder = _folder(tracking)
    folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}"
    )  # MLflow has deprecated its store of plain files


def _folder(tracking: Tracking) -> Path:
    assert tracking.mlflow is not None
    return local_path(tracking.mlflow).resolve()


def _entries(line: StepMetrics) -> Iterator[Any]:
    from mlflow.entities import Metric

    at_ms, step = int(1000 * line["time_s"]), int(line["step"])
    return (Metric(name, float(value), at_ms, step) for name, value in line.items() if name != "time_s")


def _warn(run: Run, error: Exception, consequence: str) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    if len(reason) > _REASON_CHARS:  # the start names the failed request, the end gives the cause
        reason = f"{reason[: _REASON_CHARS // 2]} ... {reason[-_REASON_CHARS // 2 :]}"
    console.print(f"MLflow, {run.recipe.tracking.mlflow}: {reason}: {consequence}", style="yellow", markup=False)
