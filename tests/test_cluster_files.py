"""The files of cluster/ against the schemas of what reads them, and against this package."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from askd_ray.ray_jobs import STAGES
from askd_ray.serve.ray_app import build
from askd_ray.serve.settings import ServiceArgs

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def serve_configs() -> list[Any]:
    return [read("serve.yaml"), yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("config", serve_configs(), ids=["serve.yaml", "rayservice.yaml"])
def test_serve_takes_the_config_and_our_builder_its_arguments(config: Any):
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = str(application.import_path).partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert ServiceArgs.model_validate(application.args).models["student"].endswith("/bundle")


def test_ray_up_takes_the_cluster():
    config = read("ray-cluster.yaml")
    validate_config(prepare_config(config))
    assert [command for command in config["setup_commands"] if "constraints.txt" in command]


@pytest.mark.parametrize("name", ["rayjob", "rayservice"])
def test_the_nodes_run_the_ray_that_is_installed(name: str):
    spec = read(f"kuberay/{name}.yaml")["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    assert len(cluster["workerGroupSpecs"]) == 1


def test_jobs_are_thin_and_there_is_one_a_stage():
    jobs = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "jobs").glob("*.py")}
    assert set(jobs) == {*STAGES, "serve"}
    for name, text in jobs.items():
        assert text.count("\n") <= 40
        assert f'main(["{name}", *sys.argv[1:]])' in text
