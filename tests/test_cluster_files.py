"""The files of cluster/ against the schemas of what reads them, and against this package."""

import importlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from serving import kill_replicas, spoken, wav

from askd_ray.ray_cluster import SETTINGS
from askd_ray.ray_jobs import STAGES
from askd_ray.serve.limits import MAX_FILE_BYTES
from askd_ray.serve.ray_app import build, stop_serving
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


@pytest.mark.slow
def test_serve_deploy_puts_the_service_on_a_cluster_that_runs(
    ray_session: None, weights: Path, speech: Path, tmp_path: Path
):
    config, file = read("serve.yaml"), tmp_path / "serve.yaml"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config["http_options"]["port"] = port = probe.getsockname()[1]
    config["applications"][0]["args"]["models"] = {"student": str(weights)}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    dashboard = f"http://{ray._private.worker.get_dashboard_url()}"
    serve = str(Path(sys.executable).with_name("serve"))
    try:
        deployed = subprocess.run([serve, "deploy", str(file), "-a", dashboard], capture_output=True, text=True)
        assert deployed.returncode == 0, deployed.stderr
        url = f"http://127.0.0.1:{port}"
        assert answers_within(120, url)
        form = {"model": "student", "response_format": "text"}
        ((clip, said),) = spoken(speech)
        heard = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": wav(clip)}, data=form, timeout=60)
        assert heard.status_code == 200
        assert words(heard.text) & words(said)
        errors_are_json_through_the_proxy(url, wav(clip))
    finally:
        stop_serving()


def errors_are_json_through_the_proxy(url: str, audio: bytes) -> None:
    """Whoever was talking to an ingress that dies hears of it from Serve's proxy."""
    healthy = httpx.get(f"{url}/health", headers={"x-request-id": "mine"}, timeout=60)
    assert healthy.headers.get_list("x-request-id") == ["mine"]
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["code"] == "unknown_url"

    def post(content: bytes) -> httpx.Response:
        form = {"files": {"file": content}, "data": {"model": "student"}}
        return httpx.post(f"{url}/v1/audio/transcriptions", timeout=60, **form)

    assert post(bytes(MAX_FILE_BYTES + 1)).status_code == 413
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(post, audio) for _ in range(40)]
        while sum(answer.done() for answer in asked) < 4:
            time.sleep(0.01)
        assert kill_replicas("Ingress") == 1
        found = [answer.result() for answer in asked]
    refused = [answer for answer in found if answer.status_code != 200]
    assert 0 < len(refused) < len(found)
    for answer in refused:
        assert answer.status_code >= 500
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def words(text: str) -> set[str]:
    return {word.strip(".,").lower() for word in text.split()}


def answers_within(seconds: float, url: str) -> bool:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        try:
            if httpx.get(f"{url}/health", timeout=30).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    return False


@pytest.mark.parametrize("name", ["ray.env", "Dockerfile"])
def test_ray_serve_is_told_the_same_everywhere(name: str):
    told = (CLUSTER / name).read_text(encoding="utf-8")
    settings = [f"{key}={value}" for key, value in SETTINGS.items() if key.startswith("RAY_SERVE_")]
    assert len(settings) == 2
    assert all(setting in told for setting in settings)


def test_ray_up_takes_the_cluster():
    config = read("ray-cluster.yaml")
    validate_config(prepare_config(config))
    assert [command for command in config["setup_commands"] if "constraints.txt" in command]
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("cluster/ray.env" in start for start in starts if "ray start" in start)


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
