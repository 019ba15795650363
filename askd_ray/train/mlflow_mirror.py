"""MLflow, where the recipe asks for it: a run there that follows the run's folder here.

The training itself sends nothing. The process that started it reads metrics.jsonl and gives MLflow what it lacks: a
tracking server that is slow, or gone, costs no step any time, and what it missed is sent when it answers again.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from askd_ray.config.schema import Recipe
from askd_ray.config.tracking import Tracking
from askd_ray.errors import AskdError
from askd_ray.files import local_path, read_json, sha256_of_file, write_json
from askd_ray.progress import console
from askd_ray.runs import Run, git_sha
from askd_ray.train.track import MetricsReader, StepMetrics

_STATE = "mlflow.json"  # in the training's folder: which run there is this one, and which files it has
_EVERY_S = 5.0
_EVERY_S_AT_MOST = 300.0  # while the server does not answer
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # what MLflow takes in one request
_REASON_CHARS = 200
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # who trains what is told to the server of the recipe and to nobody else
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # what failed is sent at the next turn: no need to insist for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # we say it in our own line
}


def check_installed(tracking: Tracking) -> None:
    """Raise :class:`AskdError` when the recipe asks for MLflow and it is not there."""
    if tracking.mlflow is not None and find_spec("mlflow") is None:
        raise AskdError("tracking.mlflow needs MLflow, which is not installed: pip install 'askd-ray[mlflow]'")


class MlflowRun:
    """The MLflow run of a run's training, made where there is none yet. Whatever it has already is not sent again.

    Metrics of a step bear the step's own time, and MLflow keeps one of those that are equal in all: a request that was
    answered too late and is made again doubles nothing. Every method raises what MLflow raises.
    """

    def __init__(self, run: Run):
        self._run = run
        self._client = _client(run.recipe.tracking)
        self._state = self._known() or self._create()
        self.id: str = self._state["run_id"]
        there = self._client.get_run(self.id)
        if there.info.status != "RUNNING" and run.record("distill") is None:
            self._client.update_run(self.id, status="RUNNING")  # it was killed, or failed, and goes on
        self._send_params(there.data.params)
        self._metrics = MetricsReader(run.distill, after=int(there.data.metrics.get("step", 0)))
        self._waiting: list[StepMetrics] = []

    def _known(self) -> dict[str, Any] | None:
        path = self._run.distill / _STATE
        state = read_json(path) if path.is_file() else None
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
        write_json(self._run.distill / _STATE, state)
        return state

    def _create_experiment(self, tracking: Tracking) -> str:
        artifacts = None if tracking.is_server else (_folder(tracking) / "artifacts").as_uri()
        return self._client.create_experiment(tracking.experiment, artifact_location=artifacts)

    def _send_params(self, there: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in flat(self._run.recipe).items() if name not in there]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self.id, params=params[start : start + _PARAMS_AT_ONCE])

    def send_metrics(self, stop: threading.Event | None = None) -> None:
        """Send the metrics that MLflow has not got yet; returns early, between two requests, once ``stop`` is set."""
        self._waiting += self._metrics.new()
        while self._waiting and not (stop is not None and stop.is_set()):
            n = 0
            entries: list[Any] = []
            for line in self._waiting:  # the metrics of a step are never parted, so its number tells that all are there
                of_step = list(_entries(line))
                if entries and len(entries) + len(of_step) > _METRICS_AT_ONCE:
                    break
                entries += of_step
                n += 1
            self._client.log_batch(self.id, metrics=entries)
            del self._waiting[:n]

    def send_files(self, files: Mapping[str, Path]) -> None:
        """Send files, by their paths in MLflow, that are new or have changed."""
        sent: dict[str, str] = self._state["files"]
        for name, path in files.items():
            digest = sha256_of_file(path)
            if sent.get(name) != digest:
                self._client.log_artifact(self.id, str(path), name.rpartition("/")[0] or None)
                sent[name] = digest
                write_json(self._run.distill / _STATE, self._state)

    def end(self, status: str) -> None:
        """Say how it ended: ``FINISHED`` or ``FAILED``."""
        self._client.set_terminated(self.id, status)


class mirrored:  # noqa: N801  # a context manager, used like a function
    """Gives MLflow the metrics of a training while the block runs; does nothing where the recipe does not ask for it.

    Whatever goes wrong there, the block goes on: one line says so.
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
            self._thread.join()  # one request at most, which ends by its timeout

    def _follow(self) -> None:
        there, warned, pause_s = None, False, 0.0
        while not self._stop.wait(pause_s):
            try:
                there = there or MlflowRun(self._run)
                there.send_metrics(self._stop)
                pause_s = _EVERY_S
            except Exception as error:
                there, pause_s = None, min(max(2 * pause_s, _EVERY_S), _EVERY_S_AT_MOST)
                if not warned:
                    _warn(self._run, error, "the training goes on; metrics.jsonl keeps what is sent when it answers")
                warned = True
        if self._failed:
            try:
                (there or MlflowRun(self._run)).end("FAILED")
            except Exception as error:
                _warn(self._run, error, "it was not told that the training failed")


def complete(run: Run, files: Mapping[str, Path]) -> None:
    """Give MLflow all that it lacks of a finished training, and ``files`` by their paths there.

    Does nothing where the recipe does not ask for it; says in one line what went wrong.
    """
    if run.recipe.tracking.mlflow is None:
        return
    try:
        check_installed(run.recipe.tracking)
        with console.status("MLflow"):
            there = MlflowRun(run)
            there.send_metrics()
            there.send_files(files)
            there.end("FINISHED")
        console.print(f"MLflow: run {there.id} in {run.recipe.tracking.mlflow}")
    except Exception as error:
        _warn(run, error, "it has not got all of this run; `askd export` sends what is missing")


def flat(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's values as text by their paths, such as ``train.lr``; lists of sections get numbers."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else str(name))
        else:
            found[path] = value if isinstance(value, str) and value else json.dumps(value)

    walk(recipe.model_dump(mode="json"), "")
    return found


def _client(tracking: Tracking) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # they announce every table that is made, and every request anew
        logging.getLogger(name).setLevel(logging.ERROR)
    if tracking.is_server:
        return MlflowClient(tracking_uri=tracking.mlflow)
    folder = _folder(tracking)
    folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")  # its store of plain files is given up


def _folder(tracking: Tracking) -> Path:
    assert tracking.mlflow is not None
    return local_path(tracking.mlflow).resolve()


def _entries(line: StepMetrics) -> Iterator[Any]:
    from mlflow.entities import Metric

    at_ms, step = int(1000 * line["time_s"]), int(line["step"])
    return (Metric(name, float(value), at_ms, step) for name, value in line.items() if name != "time_s")


def _warn(run: Run, error: Exception, so: str) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    if len(reason) > _REASON_CHARS:  # what failed stands at its start, and why at its end
        reason = f"{reason[: _REASON_CHARS // 2]} ... {reason[-_REASON_CHARS // 2 :]}"
    console.print(f"MLflow, {run.recipe.tracking.mlflow}: {reason}: {so}", style="yellow", markup=False)
