"""`askd prepare` on Ray: the same shards, whatever dies and however the sources are divided."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_sources import Row, recipe_of, shards_of, write_sources
from test_data_build_shards import ROWS, many_files

from askd_ray import stages
from askd_ray.config.load import dump_recipe
from askd_ray.data import prepare as stage
from askd_ray.data.ray_prepare import RayRunner
from askd_ray.data.task_runner import LocalRunner
from askd_ray.errors import AskdError
from askd_ray.ray_cluster import package_folder
from askd_ray.runs import Run

pytestmark = pytest.mark.slow


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, min_size=1, max_size=20), st.sampled_from(["reference", "pseudo"]), st.integers(1, 20))
def test_shards_are_those_of_one_process(ray_session: None, rows: list[Row], kind: str, part_rows: int):
    with tempfile.TemporaryDirectory() as root:
        sources = write_sources(Path(root) / "clips", rows)
        recipe = recipe_of(sources, Path(root), kind, utterances_per_shard=3)
        here = shards_of(recipe, Path(root) / "here", LocalRunner(2), 1000)
        assert shards_of(recipe, Path(root) / "there", RayRunner(), part_rows) == here


def test_the_stage_uses_the_cluster_for_large_sources(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made: list[RayRunner] = []
    monkeypatch.setattr(RayRunner, "__init__", lambda self: made.append(self))
    recipe = many_files(tmp_path, derive={"crops": {"per_utterance": 0.0}})
    result = stages.prepare(recipe)
    assert not made  # small sources
    monkeypatch.setattr(stage, "LARGE_BYTES", 1000)
    other = recipe.model_copy(update={"name": "other"})
    assert stages.prepare(other) == result and len(made) == 1
    files = [{file.name: file.read_bytes() for file in Run(r).shards.files()} for r in (recipe, other)]
    assert files[0] == files[1] and any(name.startswith("derived-train") for name in files[0])


def test_tasks_of_dead_workers_are_repeated_and_results_keep_their_order(ray_session: None, tmp_path: Path):
    def dying(number: int) -> int:
        mark = tmp_path / str(number)
        if number % 10 == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return -number

    assert list(RayRunner().map(dying, range(40))) == [-n for n in range(40)]
    assert sorted(int(mark.name) for mark in tmp_path.iterdir()) == [3, 13, 23, 33]


@pytest.mark.full
def test_node_that_dies_changes_nothing(tmp_path: Path):
    recipe = many_files(tmp_path, 60)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    script = Path(__file__).resolve().parent.parent / "support" / "dying_prepare_node.py"
    path = os.pathsep.join([str(script.parent), str(package_folder().parent)])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, str(script), str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    other = recipe.model_copy(update={"name": "other"})
    assert stage.prepare(other) == Run(recipe).result("prepare")
    files = [{file.name: file.read_bytes() for file in Run(r).shards.files()} for r in (recipe, other)]
    assert files[0] == files[1]


def test_the_first_error_is_raised_as_one_line(ray_session: None, capfd: pytest.CaptureFixture[str]):
    def refusing(number: int) -> int:
        if number >= 7:
            raise AskdError(f"{number} is too large")
        return -number

    results = RayRunner().map(refusing, range(40))
    assert [next(results) for _ in range(7)] == [-n for n in range(7)]
    with pytest.raises(AskdError, match=r"^7 is too large$"):
        next(results)
    assert "is too large" not in capfd.readouterr().err


def test_sources_that_a_node_lacks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"seed": 5 * i, "text": "words"} for i in range(9)]
    for source in write_sources(tmp_path / "clips", rows):
        recipe = recipe_of([source], tmp_path)

        class Elsewhere(LocalRunner):
            """Runs tasks where the sources are not."""

            def map(self, function, items, memory_mb=512, local_threads=1):
                with monkeypatch.context() as patch:
                    items = list(items)
                    patch.setattr("askd_ray.location.Location.is_file", lambda self: False)
                    yield from map(function, items)

        with pytest.raises(AskdError, match="is not on this machine: all nodes of a cluster need the sources"):
            shards_of(recipe, tmp_path / Path(source["path"]).name, Elsewhere(1), 100)
