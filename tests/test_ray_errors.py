"""What a user can mend is one line, from wherever on a real Ray cluster it is raised; a defect is not hidden."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError
from tiny_run import clip, record_as_labelled

from askd_ray.cli import main
from askd_ray.config.evaluate import Evaluate
from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.study import Study
from askd_ray.data.ray_stream import configure
from askd_ray.data.schema import Split
from askd_ray.data.shards import read_utterances, to_table, write_table
from askd_ray.errors import AskdError
from askd_ray.evaluation.ray_evaluate import compare
from askd_ray.evaluation.sets import EvalSet
from askd_ray.files import write_json
from askd_ray.ray_errors import from_text, keyboard_interrupt, user_error
from askd_ray.runs import Run
from askd_ray.search.ray_study import train_runs
from askd_ray.search.ray_tuner import search
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.settings import ServiceArgs
from askd_ray.targets.ray_label import label
from askd_ray.train.ray_trainer import distill

MENDABLE = AskdError("shard-0 is damaged")
FULL = OSError(errno.ENOSPC, "No space left on device", "/cache/x")


def from_a_task(cause: Exception) -> Exception:
    """What Ray raises here for an exception that a task of its own raised there."""
    return RayTaskError("load", "Traceback:\n  pages of it", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "raised",
    [
        MENDABLE,
        from_a_task(MENDABLE),
        WorkerGroupError("worker 1 failed", {1: from_a_task(MENDABLE)}),
        ControllerError(MENDABLE),
        ControllerError(from_a_task(MENDABLE)),
    ],
    ids=["as it is", "of a task", "of a worker", "of a controller", "of a task in a controller"],
)
def test_user_error_is_one_line(raised: Exception):
    with pytest.raises(AskdError) as caught, user_error():
        raise raised
    assert str(caught.value) == "shard-0 is damaged"


def test_full_disk_of_a_worker_is_an_os_error():
    with pytest.raises(OSError, match="No space left") as caught, user_error():
        raise from_a_task(FULL)
    assert (type(caught.value), caught.value.errno, caught.value.filename) == (OSError, errno.ENOSPC, "/cache/x")


def test_other_errors_are_unchanged():
    raised = from_a_task(KeyError("x"))
    with pytest.raises(KeyError) as caught, user_error():
        raise raised
    assert caught.value is raised
    assert from_text("Traceback:\n  raise KeyError\nKeyError: 'askd_ray.errors.AskdError: x'") is None


def test_ctrl_c_during_a_training_does_not_exit_with_0():
    with pytest.raises(KeyboardInterrupt), keyboard_interrupt():
        raise SystemExit(0)


def over_rows(**how: Any) -> Callable[[Any], None]:
    """Return what runs a function or class over a row with Ray Data."""

    def run(function: Any) -> None:
        configure()
        list(ray.data.from_items([{"a": 1}]).map(function, **how).iter_rows())

    return run


def generated(function: Any) -> None:
    def load(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        function(row)
        yield row

    configure()
    list(ray.data.from_items([{"a": 1}]).flat_map(load).iter_rows())


def in_a_task(function: Any) -> None:
    ray.get(ray.remote(function).remote({}))


def in_a_constructor(function: Any) -> None:
    class Actor:
        def __init__(self) -> None:
            function({})

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return row

    over_rows(compute=ray.data.ActorPoolStrategy(min_size=1, max_size=1))(Actor)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("place", [over_rows(), generated, in_a_task, in_a_constructor])
def test_errors_of_every_kind_of_ray_task_are_complete(ray_session: None, place: Callable[[Any], None]):
    def mendable(row: object) -> None:
        raise AskdError("shard-0: é is damaged")

    def full(row: object) -> None:
        raise OSError(errno.EACCES, "Permission denied", "/cache/x")

    with pytest.raises(AskdError) as caught, user_error():
        place(mendable)
    assert (type(caught.value), str(caught.value)) == (AskdError, "shard-0: é is damaged")
    with pytest.raises(OSError, match="Permission denied") as refused, user_error():
        place(full)
    assert (refused.value.errno, refused.value.filename) == (errno.EACCES, "/cache/x")


@pytest.fixture
def run(copy_of_run: Callable[[], Recipe]) -> Run:
    """A labelled run, as its records say."""
    run = Run(copy_of_run())
    record_as_labelled(run)
    return run


def spoil(run: Run, split: Split) -> None:
    """Add a shard with audio that nobody can decode."""
    write_table(run.shards / f"{split}-00009.parquet", to_table([replace(clip(90, "zero", split), audio=b"none")]))


def with_damaged_weights(folder: Path, model: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"none of it")
    return folder


def one_line(stage: Callable[[], object], expected: str) -> None:
    with pytest.raises(AskdError) as caught:
        stage()
    assert type(caught.value) is AskdError and expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_labelling_actor(
    run: Run,
    tiny_model: Path,
    tmp_path: Path,
    ray_session: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """On the command line: 90 lines and exit code 1 it was."""
    spoil(run, "train")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(run.recipe))
    with pytest.raises(SystemExit) as exit_:
        main(["label", "--recipe", str(tmp_path / "recipe.yaml")])
    error = capfd.readouterr().err
    assert exit_.value.code == 2 and len(error.strip().splitlines()) == 1, error
    assert error.startswith("askd: ") and "u90" in error and "UDF" not in caplog.text
    damaged = {"model": str(with_damaged_weights(tmp_path / "damaged", tiny_model)), "top_k": 4}
    recipe = Recipe.model_validate({**run.recipe.model_dump(mode="json"), "teacher": damaged})
    one_line(lambda: label(recipe, force=True), "damaged cannot be loaded")


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_training_worker(run: Run, ray_session: None):
    spoil(run, "dev")
    one_line(lambda: distill(run.recipe), "u90")


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_trial(run: Run, ray_session: None):
    spoil(run, "dev")
    tune = {"trials": 1, "epochs": 1, "evals_per_epoch": 1}
    one_line(lambda: search(Recipe.model_validate({**run.recipe.model_dump(mode="json"), "tune": tune})), "u90")


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_study_run(run: Run, ray_session: None):
    spoil(run, "dev")
    arms = {name: run.recipe.objective for name in ("a", "b")}
    one_line(lambda: train_runs([run.recipe], Study(arms=arms, against="a")), "u90")


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_decoding_actor(run: Run, tiny_model: Path, tmp_path: Path, ray_session: None):
    clips = EvalSet("dev", True, tuple(read_utterances(run.shards, "dev")))
    models = {"teacher": str(with_damaged_weights(tmp_path / "damaged", tiny_model))}
    settings = Evaluate(stock=False, speed_clips=1, non_speech=False)
    one_line(lambda: compare(models, "teacher", [clips], settings, tmp_path / "evaluate"), "damaged")


@pytest.mark.full
@pytest.mark.slow
def test_error_of_a_replica(weights: Path, tmp_path: Path, ray_session: None):
    (tmp_path / "ctranslate2-int8").symlink_to(weights)
    sha256 = {"ctranslate2-int8/model.bin": "0" * 64}
    write_json(tmp_path / "bundle.json", {"name": "small", "window": {"silence_s": 0.3}, "sha256": sha256})
    try:
        args = ServiceArgs(models={"small": str(tmp_path)})
        one_line(lambda: serve_bundles(args, Address(port=0), blocking=False), "model.bin")
    finally:
        stop_serving()
