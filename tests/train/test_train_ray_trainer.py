"""The stage `distill` on a real Ray cluster, with faults during the training."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from killed_run import CPU, checkpoint, ledger_of
from ray_faults import (
    N_CLIPS,
    STEPS,
    assert_every_utterance_was_seen_once,
    assert_undisturbed,
    attempts,
    in_small_shards,
    last_step,
    plain_two_ranks,
    ray_processes,
    when,
)
from small_run import with_objective

from askd_ray.cli import main
from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.shards import read_table
from askd_ray.ray_cluster import package_folder
from askd_ray.runs import Run
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.ray_trainer import distill, distill_key

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_shards(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return in_small_shards(labelled, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(small_shards: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks without Ray and without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plain_two_ranks(small_shards, folder)
    return folder


@pytest.fixture
def recipe(small_shards: Recipe, tmp_path: Path) -> Recipe:
    """A copy of the run, for a test to change."""
    shutil.copytree(Run(small_shards).path, tmp_path / "runs" / small_shards.name)
    return small_shards.model_copy(update={"runs_root": str(tmp_path / "runs")})


@pytest.fixture
def command(recipe: Recipe, tmp_path: Path) -> list[str]:
    """The arguments of `askd` that distil the recipe."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return ["distill", "--recipe", str(file)]


def _environment() -> dict[str, str]:
    """The environment of a process that does not use the cluster of these tests."""
    paths = [str(package_folder().parent), os.environ.get("PYTHONPATH", "")]
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return others | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_not_finite_setting_does_not_change_the_key(recipe: Recipe):
    skipping = with_objective(recipe, {}, train={"not_finite": "skip"})
    assert distill_key(Run(skipping)) == distill_key(Run(with_objective(recipe, {})))
    elsewhere = {"workers": {"count": 1, "gpu": True, "cpus": 4.0}, "batching": {"micro_batches": 2}}
    assert distill_key(Run(with_objective(recipe, {}, train=elsewhere))) == distill_key(Run(skipping))
    assert distill_key(Run(with_objective(recipe, {}, train={"optimizer": {"clip_norm": 2.0}}))) != distill_key(
        Run(skipping)
    )


def kill_worker() -> None:
    ray_processes("RayTrainWorker")[-1].send_signal(signal.SIGKILL)


@pytest.mark.full
def test_killed_worker_changes_no_bit(recipe: Recipe, undisturbed: Path, ray_session: None):
    folder = Run(recipe).distill

    with when(lambda: last_step(folder) >= 4, kill_worker):
        summary = distill(recipe)
    assert attempts(folder) == 2
    assert_undisturbed(folder, undisturbed)
    assert summary["utterances"]["trained"] == N_CLIPS


@pytest.mark.full
def test_too_many_worker_failures_are_a_one_line_error(
    recipe: Recipe, ray_session: None, command: list[str], capsys: pytest.CaptureFixture[str]
):
    arguments = [*command, "--set", "train.workers.max_failures=0"]
    with when(lambda: last_step(Run(recipe).distill) >= 1, kill_worker), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "askd:" in line]
    assert line.startswith("askd: training workers have died 1 times (train.workers.max_failures = 0)")


@pytest.mark.full
def test_killed_driver_resumes_with_the_same_command(
    recipe: Recipe, undisturbed: Path, command: list[str], tmp_path: Path
):
    folder, log_file = Run(recipe).distill, tmp_path / "said"

    def start() -> psutil.Popen:
        whole = [sys.executable, "-m", "askd_ray", *command]
        with log_file.open("w", encoding="utf-8") as out:
            return psutil.Popen(whole, env=_environment(), start_new_session=True, stdout=out, stderr=out)

    first = start()
    while last_step(folder) < 4:
        assert first.poll() is None, log_file.read_text(encoding="utf-8")
        time.sleep(0.01)
    cluster = first.children(recursive=True)
    first.kill()
    first.wait()
    assert last_step(folder) < STEPS
    second = start()
    assert second.wait(timeout=300) == 0, log_file.read_text(encoding="utf-8")
    assert_undisturbed(folder, undisturbed)
    assert attempts(folder) == 2
    assert psutil.wait_procs(cluster, timeout=60)[1] == []  # no process of the first driver is left


@pytest.mark.full
def test_ctrl_c_ends_with_one_line_and_130(recipe: Recipe, command: list[str], tmp_path: Path):
    """By default, Ray Train would end the process with exit code 0, as if the training had finished."""
    folder, log_file = Run(recipe).distill, tmp_path / "said"
    with log_file.open("w", encoding="utf-8") as out:
        whole = [sys.executable, "-m", "askd_ray", *command]
        driver = psutil.Popen(whole, env=_environment(), start_new_session=True, stdout=out, stderr=out)
    while last_step(folder) < 4:
        assert driver.poll() is None, log_file.read_text(encoding="utf-8")
        time.sleep(0.01)
    cluster = driver.children(recursive=True)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=120) == 130, log_file.read_text(encoding="utf-8")
    text = log_file.read_text(encoding="utf-8")
    assert "Traceback" not in text and text.splitlines()[-1].startswith("askd: interrupted")
    assert Run(recipe).record("distill") is None and list((folder / "checkpoints").iterdir())
    assert psutil.wait_procs(cluster, timeout=60)[1] == []


@pytest.mark.full
def test_truncated_shard_ends_the_run_which_resumes_once_repaired(
    recipe: Recipe, undisturbed: Path, ray_session: None, command: list[str], capsys: pytest.CaptureFixture[str]
):
    folder = Run(recipe).distill
    shard = Path(str(Run(recipe).shards.files("train-*")[1]))
    whole = shard.read_bytes()
    with when(lambda: last_step(folder) >= 1, lambda: os.truncate(shard, 1000)), pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("askd:")]
    assert f"{shard.name} is damaged" in line
    assert attempts(folder) == 1  # Ray Train did not try again
    assert len(list((folder / "checkpoints").iterdir())) == 1 and ledger_of(folder)

    shard.write_bytes(whole)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert_undisturbed(folder, undisturbed)


@pytest.mark.full
def test_killed_nodes_change_neither_labels_nor_student(
    recipe: Recipe, small_shards: Recipe, undisturbed: Path, command: list[str]
):
    """One of three nodes dies during `askd label`, another one during `askd distill`."""
    shutil.rmtree(str(Run(recipe).labels))
    on_dying_nodes(command[-1])
    for expected in Run(small_shards).labels.files("train-*"):
        assert read_table(Run(recipe).labels / expected.name).equals(read_table(expected), check_metadata=True)
    assert_undisturbed(Run(recipe).distill, undisturbed)
    assert attempts(Run(recipe).distill) == 2


@pytest.mark.full
def test_fewer_workers_continue_after_a_lost_node(recipe: Recipe, undisturbed: Path, tmp_path: Path):
    """Each node has room for one worker, and nothing replaces the node that dies."""
    values = recipe.model_dump(mode="json")
    values["train"]["batching"]["micro_batches"] = 2
    values["train"]["workers"] |= {"min_count": 1, "cpus": 1.5}
    file = tmp_path / "elastic.yaml"
    elastic = Recipe.model_validate(values)
    file.write_text(dump_recipe(elastic), encoding="utf-8")
    on_dying_nodes(str(file), RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="10")
    folder = Run(elastic).distill
    assert Run(elastic).result("distill")["workers"] == 1 and attempts(folder) == 2
    assert_every_utterance_was_seen_once(folder)
    found, expected_tensors = checkpoint(folder), checkpoint(undisturbed)
    for name, value in found.items():  # one worker adds the same gradients in another order
        torch.testing.assert_close(value, expected_tensors[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.full
def test_eight_workers_on_four_nodes(recipe: Recipe, small_shards: Recipe, tmp_path: Path):
    """A node dies in `askd label` and another one in `askd distill`: the student is that of one process."""
    values = small_shards.model_dump(mode="json")
    values["train"]["batching"]["micro_batches"] = 8
    values["train"]["workers"] |= {"count": 1}
    alone = Recipe.model_validate(values)
    build_loop(alone, PlainContext(CPU), tmp_path / "alone", "key").run()
    values["train"]["workers"] |= {"count": 8, "placement": "SPREAD"}
    wide = Recipe.model_validate(values | {"runs_root": recipe.runs_root})
    file = tmp_path / "wide.yaml"
    file.write_text(dump_recipe(wide), encoding="utf-8")
    shutil.rmtree(str(Run(wide).labels))
    on_dying_nodes(str(file))
    folder = Run(wide).distill
    assert Run(wide).result("distill")["workers"] == 8 and attempts(folder) == 2
    assert_every_utterance_was_seen_once(folder)
    assert ledger_of(folder) == ledger_of(tmp_path / "alone")
    found, expected_tensors = checkpoint(folder), checkpoint(tmp_path / "alone")
    for name, value in found.items():  # eight workers add the same gradients in another order
        torch.testing.assert_close(value, expected_tensors[name], rtol=1e-3, atol=1e-5, msg=name)


def on_dying_nodes(file: str, **environment: str) -> None:
    """Run the script dying_nodes.py on a recipe."""
    script = Path(__file__).parents[1] / "support" / "dying_nodes.py"
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short path, because socket paths have a length limit
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, str(script), file],
            env=_environment() | ray | environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert done.returncode == 0, done.stderr
