"""A run whose folder is on a real S3 server, with the command line and Ray: it is killed in the middle of an upload."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from killed_run import CPU, assert_same_run
from stalling_proxy import stalling_proxy

from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.shards import read_utterances
from askd_ray.ray_cluster import package_folder
from askd_ray.runs import Run
from askd_ray.train.build import build_loop
from askd_ray.train.checkpoint_store import read_manifest
from askd_ray.train.context import PlainContext

pytestmark = [pytest.mark.slow, pytest.mark.full]


@pytest.fixture
def recipe(labelled: Recipe, s3: Callable[[str], str], tmp_path: Path) -> Recipe:
    """A recipe of the same teacher, with a folder as its source and its run on a store."""
    (tmp_path / "clips").mkdir()
    rows: list[str] = []
    for split in ("train", "dev"):
        for u in read_utterances(Run(labelled).shards, split):
            (tmp_path / "clips" / u.path).write_bytes(u.audio)
            rows.append(json.dumps({"audio": u.path, "text": f"{u.text} {u.id}", "id": u.id}) + "\n")
    (tmp_path / "clips" / "manifest.jsonl").write_text("".join(rows))
    sources = [{"path": str(tmp_path / "clips")}]
    data = {"sources": sources, "utterances_per_shard": 4, "dev_share": 0.3, "test_share": 0.0, "chars_per_s": None}
    values = labelled.model_dump(mode="json")
    train = {**values["train"], "epochs": 3, "checkpoint_steps": 2}
    return Recipe.model_validate({**values, "name": "mine", "runs_root": s3("runs"), "data": data, "train": train})


def askd(recipe: Recipe, stage: str, cache: Path) -> psutil.Popen:
    """Start a command on a machine with this cache; credentials come from the environment."""
    cache.mkdir(exist_ok=True)
    file = cache / f"{stage}.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    paths = [str(package_folder().parent), os.environ.get("PYTHONPATH", "")]
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_TMPDIR"}
    keys = {"AWS_ACCESS_KEY_ID": "mykey", "AWS_SECRET_ACCESS_KEY": "mysecret"}
    environment = {**others, **keys, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "ASKD_CACHE": str(cache)}
    with (cache / "log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "askd_ray", stage, "--recipe", str(file)]
        return psutil.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT)


def finish(recipe: Recipe, stage: str, cache: Path) -> None:
    assert askd(recipe, stage, cache).wait(timeout=600) == 0, (cache / "log").read_text(encoding="utf-8")


def test_run_that_is_killed_during_an_upload_resumes_on_another_machine(
    recipe: Recipe, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for stage in ("prepare", "label"):
        finish(recipe, stage, tmp_path / "first")
    here = recipe.model_copy(update={"runs_root": str(tmp_path / "runs"), "data_root": recipe.runs_root})
    summary = build_loop(here, PlainContext(CPU), tmp_path / "expected", "key").run()
    place = Run(recipe).place / "distill"
    assert read_manifest(place) == {}
    with stalling_proxy(s3_server) as proxy:
        proxy.stall(rb"PUT \S*step-0000000[4-9]/optimizer")
        slow = here.model_copy(update={"runs_root": recipe.runs_root.replace(s3_server, proxy.address)})
        driver = askd(slow, "distill", tmp_path / "first")
        while not proxy.stalled.wait(0.1):
            assert driver.poll() is None, (tmp_path / "first" / "log").read_text(encoding="utf-8")
        processes = [driver, *driver.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(processes, timeout=60)[1] == []
    step = read_manifest(place)["step"]
    assert 0 < step < summary["steps"] and Run(recipe).record("distill") is None

    for stage in ("distill", "distill"):  # the second finds it finished
        finish(recipe, stage, tmp_path / "second")
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path / "second"))
    run = Run(recipe)
    assert_same_run(run.distill, tmp_path / "expected")
    result = run.result("distill")
    assert result["utterances"]["unaccounted"] == 0
    assert {k: v for k, v in result.items() if k != "utterances"} == {
        k: v for k, v in summary.items() if k != "utterances"
    }
    log = (tmp_path / "second" / "log").read_text(encoding="utf-8")
    assert "distill: finished already" in log and "mysecret" not in log
    left = sorted(file.path.removeprefix(f"{run.place.path}/").split("/")[0] for file in run.place.stamped(True))
    assert set(left) >= {"distill", "distill.json", "recipe.yaml", "report", "report.md", "shards", "labels"}
    assert not run.has("ray")
