"""Stages as Ray jobs, against the dashboard of the session's own cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import yaml

from askd_ray import ray_jobs
from askd_ray.config.schema import Data, Recipe, Teacher
from askd_ray.config.source import Source
from askd_ray.config.student import Student
from askd_ray.errors import AskdError
from askd_ray.provenance import git_sha
from askd_ray.ray_jobs import submit, with_absolute_paths

STAND_IN = """\
import sys, pathlib, askd_ray
print("arguments", *sys.argv[1:])
print(pathlib.Path(sys.argv[3]).read_text())
sys.exit(3)
"""


def test_paths_become_absolute_and_references_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "t").mkdir(parents=True)
    recipe = Recipe(
        data=Data(sources=tuple(Source(path=p) for p in ("speech", "cache:ivr", "/data/x", "s3://bucket/x"))),
        teacher=Teacher(model="models/t"),
        student=Student(init="openai/whisper-small"),
    )
    absolute = with_absolute_paths(recipe)
    assert [s.path for s in absolute.data.sources] == [
        str(tmp_path / "speech"),
        "cache:ivr",
        "/data/x",
        "s3://bucket/x",
    ]
    assert absolute.runs_root == str(tmp_path / "runs")
    assert absolute.teacher.model == str(tmp_path / "models/t")
    assert absolute.student.init == "openai/whisper-small"
    assert with_absolute_paths(Recipe()).teacher.model == "wheel:tiny.en"
    roots = [with_absolute_paths(Recipe(data_root=root)).data_root for root in (None, "data", "gs://bucket/x")]
    assert roots == [None, str(tmp_path / "data"), "gs://bucket/x"]
    assert absolute.train == recipe.train


def test_invalid_arguments_are_refused():
    with pytest.raises(AskdError, match=r"allowed are prepare, label.*did you mean 'distill'"):
        submit("destill", Recipe(), "http://127.0.0.1:8265")
    with pytest.raises(AskdError, match="dashboard's URL"):
        submit("distill", Recipe(), "127.0.0.1:8265")


def test_address_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(AskdError, match=r"no Ray cluster at http://127\.0\.0\.1:1"):
        submit("distill", Recipe(), "http://127.0.0.1:1")
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


@pytest.mark.full
@pytest.mark.slow
def test_job_gets_the_recipe_and_returns_output_and_exit_code(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    package = tmp_path / "askd_ray"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.setattr(ray_jobs, "package_folder", lambda: package)
    recipe = Recipe(name="as-a-job", runs_root=str(tmp_path / "runs"))
    assert submit("label", recipe, dashboard) == 3
    _, _, output = capfd.readouterr().out.partition("arguments label --recipe recipe.yaml\n")
    assert Recipe.model_validate(yaml.safe_load(output)) == recipe


@pytest.mark.full
@pytest.mark.slow
def test_user_error_in_a_job_is_one_line_and_exit_code_2(
    dashboard: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    recipe = Recipe(runs_root=str(tmp_path / "runs"), data=Data(sources=(Source(path=str(tmp_path / "missing")),)))
    assert submit("prepare", recipe, dashboard) == 2
    output = capfd.readouterr().out
    assert str(tmp_path / "missing") in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_wrong_token_is_a_one_line_error(dashboard: str, monkeypatch: pytest.MonkeyPatch):
    def with_wrong_token(address: str, headers: dict[str, str] | None = None):
        return client(address, headers={"Authorization": "Bearer wrong"})

    client = ray_jobs.JobSubmissionClient
    monkeypatch.setattr(ray_jobs, "JobSubmissionClient", with_wrong_token)
    with pytest.raises(AskdError, match="needs another token") as caught:
        submit("label", Recipe(), dashboard)
    assert "\n" not in str(caught.value)


def test_environment_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASKD_CACHE", "cache")
    environment = ray_jobs._runtime_env("folder")
    assert environment["env_vars"]["ASKD_CACHE"] == str(tmp_path / "cache")
    assert Path(environment["py_modules"][0]).name == "askd_ray"
    if sys.prefix != sys.base_prefix:
        assert environment["env_vars"]["PATH"].startswith(str(Path(sys.executable).parent) + os.pathsep)


@pytest.mark.full
@pytest.mark.slow
def test_pipeline_as_jobs_with_a_recipe_ignored_by_git(
    dashboard: str, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The recipe was looked for on the cluster, where no ignored file comes, and the results had no git SHA."""
    lines = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()[:40:5]]
    (tmp_path / "speech").mkdir()
    manifest = [json.dumps({**line, "audio": str(speech / line["audio"])}) + "\n" for line in lines]
    (tmp_path / "speech" / "manifest.jsonl").write_text("".join(manifest))
    # Its second stage is refused: two jobs show what travels.
    recipe = {"name": "mine", "data": {"sources": [{"path": "speech"}]}, "teacher": {"model": "./nowhere"}}
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("ASKD_GIT_SHA", "of the checkout")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    script = Path(__file__).resolve().parent.parent / "jobs" / "run_all.sh"
    done = subprocess.run(
        ["bash", str(script), dashboard, "runs/mine/recipe.yaml", "--set", "data.dev_share=0.3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout and "askd: no model at './nowhere'" in done.stdout
    record = json.loads((tmp_path / "runs" / "mine" / "prepare.json").read_bytes())
    assert sum(record["result"]["utterances"].values()) == 8
    assert record["git_sha"] == "of the checkout"
    assert record["recipe"]["data"]["sources"][0]["path"] == str(tmp_path / "speech")
    assert record["recipe"]["data"]["dev_share"] == 0.3


def test_job_gets_the_git_sha(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ASKD_GIT_SHA", raising=False)
    sha = ray_jobs._runtime_env("folder")["env_vars"].get("ASKD_GIT_SHA")
    assert sha == git_sha() and (sha is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", sha))


def test_submit_waits_for_a_starting_cluster(monkeypatch: pytest.MonkeyPatch):
    class Starting:
        answers: ClassVar = ["No available agent to submit job", "No available agent to submit job"]

        def submit_job(self, **_: object) -> str:
            if self.answers:
                raise RuntimeError(self.answers.pop())
            return "job-1"

    monkeypatch.setattr(ray_jobs, "_RETRY_S", 0.0)
    assert ray_jobs._submit(cast(Any, Starting()), "python", {}) == "job-1"
    monkeypatch.setattr(ray_jobs, "_STARTING_S", 0.0)
    Starting.answers.append("No available agent to submit job")
    with pytest.raises(RuntimeError, match="No available agent"):
        ray_jobs._submit(cast(Any, Starting()), "python", {})
