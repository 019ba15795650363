import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from killed_run import CPU, DyingContext, KilledError
from mlflow import MlflowClient
from mlflow_server import MlflowServer

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.runs import Run
from askd_ray.train import mlflow_mirror
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.mlflow_mirror import MlflowRun, flatten_recipe, mirrored, send_finished_run
from askd_ray.train.ray_trainer import check_inputs
from askd_ray.train.track import Tracker, read_metrics

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MLflow's real SQLite store; each test has its own experiment."""
    return tmp_path_factory.mktemp("mlflow") / "made by mlflow"


@pytest.fixture
def client(store: Path) -> MlflowClient:
    store.mkdir(exist_ok=True)
    return MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")


@pytest.fixture
def a_run(labelled: Recipe, tmp_path: Path) -> MakeRun:
    """Return a new run with the labelled run's data, tracked at the given URI."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / labelled.name).symlink_to(Run(labelled).path)

    def make(where: str | Path, **tracking: str) -> Run:
        changes = {"name": "mirrored", "data_run": labelled.name, "runs_root": str(tmp_path / "runs")}
        values = labelled.model_dump() | changes | {"tracking": {"mlflow": str(where), **tracking}}
        return Run(Recipe.model_validate(values))

    return make


@pytest.fixture
def server() -> Iterator[MlflowServer]:
    server = MlflowServer()
    yield server
    server.shutdown()


def track(run: Run, first: int, last: int) -> None:
    """Write metrics of 20 values per step, like a run that resumed just before step ``first``."""
    tracker = Tracker(run.distill, first - 1)
    for step in range(first, last + 1):
        tracker.log(step, {f"m{i}": i / step for i in range(20)})
    tracker.close()


@pytest.mark.slow
def test_resumed_run_continues_the_mlflow_run(
    a_run: MakeRun, store: Path, client: MlflowClient, capfd: pytest.CaptureFixture[str]
):
    """A real training, killed after it sent steps to MLflow that it repeats after the restart."""
    run = a_run(store)
    context = DyingContext(CPU)
    context.dies_after = 8
    with pytest.raises(KilledError), mirrored(run):
        build_loop(run.recipe, context, run.distill, "key").run()
    first = MlflowRun(run)
    first.send_metrics()
    assert client.get_run(first.id).data.metrics["step"] == 8

    loop = build_loop(run.recipe, PlainContext(CPU), run.distill, "key")
    assert 0 < loop.train_state.step < 8
    with mirrored(run):
        result = loop.run()
    run.finish("distill", "key", result, run.begin("distill"))
    send_finished_run(
        run, {"recipe.yaml": run.path / "recipe.yaml", "bundle/transformers/config.json": run.student / "config.json"}
    )

    experiment = client.get_experiment_by_name("askd")
    assert experiment is not None
    (there,) = client.search_runs([experiment.experiment_id])
    assert (there.info.run_id, there.info.run_name, there.info.status) == (first.id, "mirrored", "FINISHED")
    assert there.data.params == flatten_recipe(run.recipe)
    assert there.data.params["train.optimizer.lr"] == str(run.recipe.train.optimizer.lr)
    lines = read_metrics(run.distill)
    for name in ("loss", "lr/decoder", "a"):
        history = [(m.step, m.value) for m in client.get_metric_history(there.info.run_id, name)]
        assert sorted(history) == [(line["step"], line[name]) for line in lines]
    scored = [(m.step, m.value) for m in client.get_metric_history(there.info.run_id, "dev_wer")]
    assert sorted(scored) == [(line["step"], line["dev_wer"]) for line in lines if "dev_wer" in line]
    config = Path(client.download_artifacts(there.info.run_id, "bundle/transformers/config.json"))
    assert config.read_bytes() == (run.student / "config.json").read_bytes()
    assert "alembic" not in (printed := "".join(capfd.readouterr())) and "INFO" not in printed


def test_failed_training_is_failed_until_it_resumes(a_run: MakeRun, store: Path, client: MlflowClient):
    run = a_run(store, experiment="failing")
    track(run, 1, 2)
    with pytest.raises(KilledError), mirrored(run):
        raise KilledError
    experiment = client.get_experiment_by_name("failing")
    assert experiment is not None
    (there,) = client.search_runs([experiment.experiment_id])
    assert there.info.status == "FAILED"
    MlflowRun(run)
    assert client.get_run(there.info.run_id).info.status == "RUNNING"


def test_repeated_metrics_are_stored_once(a_run: MakeRun, store: Path, client: MlflowClient):
    """A request that timed out but arrives late: both mirrors read MLflow's state before either sends anything."""
    run = a_run(store, experiment="twice")
    track(run, 1, 3)
    one, other = MlflowRun(run), MlflowRun(run)
    one.send_metrics()
    other.send_metrics()
    assert [(m.step, m.value) for m in client.get_metric_history(one.id, "m6")] == [(1, 6.0), (2, 3.0), (3, 2.0)]


def test_server_gets_batches_and_only_changed_files(
    a_run: MakeRun, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    run = a_run(server.url)
    track(run, 1, 120)
    card, model = run.path / "README.md", run.path / "model.bin"
    card.write_text("no scores yet")
    model.write_bytes(bytes(5000))
    files = {"bundle/README.md": card, "bundle/transformers/model.bin": model}
    send_finished_run(run, files)
    assert server.params == flatten_recipe(run.recipe)
    assert server.history("m4") == [(step, 4 / step) for step in range(1, 121)]
    # 21 values a step, 47 steps in a request.
    assert server.requests.count("/api/2.0/mlflow/runs/log-batch") == 3 + -(-len(server.params) // 100)
    assert server.files == {"bundle/README.md": b"no scores yet", "bundle/transformers/model.bin": bytes(5000)}
    assert server.runs == [{"name": "mirrored", "status": "FINISHED"}] and server.experiments == ["askd"]

    server.requests.clear()
    card.write_text("WER 0.1")
    send_finished_run(run, files)
    assert server.files["bundle/README.md"] == b"WER 0.1"
    assert [path for path in server.requests if "artifacts" in path or "log-batch" in path] == [
        "/api/2.0/mlflow-artifacts/artifacts/7/r1/artifacts/bundle/README.md"
    ]
    assert server.authorization == {"Basic bWU6aHVzaA=="}
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"MLflow: run r1 in {server.url}"] * 2


def test_server_gets_all_metrics_after_an_outage(
    a_run: MakeRun, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(mlflow_mirror, "_INTERVAL_S", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.trouble = 503
    run = a_run(server.url)
    with mirrored(run):
        track(run, 1, 60)
        assert wait_for(lambda: len(server.requests) >= 3)  # the mirror keeps retrying
        server.trouble = 0
        assert wait_for(lambda: len(server.history("m0")) == 60)
        track(run, 51, 70)  # a worker died and resumed from a checkpoint after step 50
        assert wait_for(lambda: len(server.history("m0")) == 70)
    assert [step for step, _ in server.history("m0")] == list(range(1, 71))
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"MLflow, {server.url}: ")
    assert warning.endswith(": the training continues; metrics.jsonl keeps the metrics until MLflow answers")


def test_unreachable_server_does_not_stop_the_training(
    a_run: MakeRun, refusing_port: int, capsys: pytest.CaptureFixture[str]
):
    run = a_run(f"http://127.0.0.1:{refusing_port}")
    with mirrored(run):
        track(run, 1, 50)
        assert wait_for(lambda: "Connection refused" in capsys.readouterr().out)
    send_finished_run(run, {"metrics.jsonl": run.distill / "metrics.jsonl"})
    assert len(read_metrics(run.distill)) == 50
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("MLflow does not have all of this run; `askd export` sends the rest")


def test_silent_server_does_not_delay_the_training(a_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = a_run(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with mirrored(run):
            connection, _ = silent.accept()  # the mirror has sent a request and waits
            with connection:
                track(run, 1, 50)
                assert is_open(connection)  # all steps are tracked while the request waits
    assert len(read_metrics(run.distill)) == 50


def test_no_mlflow_without_tracking(a_run: MakeRun, labelled: Recipe):
    run = Run(a_run("unused").recipe.model_copy(update={"tracking": labelled.tracking}))
    with mirrored(run):
        track(run, 1, 1)
    send_finished_run(run, {})
    assert not (run.distill / "mlflow.json").exists()


def test_missing_mlflow_is_refused(a_run: MakeRun, labelled: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_mirror, "find_spec", lambda name: None)
    with pytest.raises(AskdError, match=r"tracking.mlflow needs MLflow.*pip install 'askd-ray\[mlflow\]'"):
        check_inputs(a_run("folder").recipe)
    check_inputs(labelled)


def test_recipe_as_params():
    params = flatten_recipe(
        Recipe.model_validate(
            {
                "runs_root": "s3://key:secret@b",
                "data": {"sources": [{"path": "a"}, {"path": "b"}]},
                "train": {"optimizer": {"lr": 1e-4}},
            }
        )
    )
    assert params["runs_root"] == "s3://b"
    assert (params["data.sources.0.path"], params["data.sources.1.path"]) == ("a", "b")
    assert (params["train.optimizer.lr"], params["train.workers.gpu"], params["student.init"]) == (
        "0.0001",
        "false",
        "null",
    )
    assert params["targets.prompt"] == '""'  # a server rejects an empty param


def is_open(connection: socket.socket) -> bool:
    """Whether the other side still waits for an answer."""
    connection.setblocking(False)
    with suppress(BlockingIOError):
        while connection.recv(1 << 16):
            pass
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true within some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
