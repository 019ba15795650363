"""The files of cluster/ against the schemas of what reads them, and against this package (kuberay: test_kubernetes)."""

import asyncio
import copy
import fnmatch
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from jsonschema import ValidationError
from kubernetes_rules import IMAGE_ENV, IMAGE_USER
from moto import mock_aws
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.autoscaler._private.providers import _clear_provider_cache as clear_provider_cache
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import bootstrap_config, fillout_defaults
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ServeDeploySchema
from service_clients import caption, transcribe
from serving import kill_replicas, spoken, wav

from askd_ray.ray_cluster import SETTINGS
from askd_ray.ray_jobs import STAGES
from askd_ray.serve.limits import MAX_FILE_BYTES
from askd_ray.serve.listener import Address
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.ray_app import build, stop_serving
from askd_ray.serve.settings import ServiceArgs

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
DOCKERFILE = re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def serve_configs() -> list[Any]:
    return [read("serve.yaml"), yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("config", serve_configs(), ids=["serve.yaml", "rayservice.yaml"])
def test_serve_config_and_builder_arguments_are_valid(config: Any):
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = str(application.import_path).partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert ServiceArgs.model_validate(application.args).models["student"].endswith("/bundle")
    assert config["applications"][0].keys() <= application.model_fields_set
    source = (ROOT / "askd_ray" / "serve" / "ray_app.py").read_text(encoding="utf-8")
    assert all(f'name="{deployment.name}"' in source for deployment in application.deployments)


@contextmanager
def deployed(config: Any, dashboard: str, weights: Path, tmp_path: Path, **args: Any) -> Iterator[str]:
    """Give a config to `serve deploy`, on loopback and with these weights; yields the URL once it answers."""
    file = tmp_path / "serve.yaml"
    config["applications"][0]["args"] |= {"models": {"student": str(weights)}} | args
    serve = str(Path(sys.executable).with_name("serve"))
    try:
        with Address(port=0).reserved() as address:  # Serve's proxy shares the reserved port, as the service does
            config["http_options"] = {"host": address.host, "port": address.port}
            file.write_text(yaml.safe_dump(config), encoding="utf-8")
            done = subprocess.run([serve, "deploy", str(file), "-a", dashboard], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert answers_within(120, address.url)
            yield address.url
    finally:
        stop_serving()


@pytest.mark.full
@pytest.mark.slow
def test_serve_deploy_on_a_running_cluster(dashboard: str, weights: Path, speech: Path, tmp_path: Path):
    with deployed(read("serve.yaml"), dashboard, weights, tmp_path) as url:
        form = {"model": "student", "response_format": "text"}
        ((clip, text),) = spoken(speech)
        response = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": wav(clip)}, data=form, timeout=60)
        assert response.status_code == 200
        assert words(response.text) & words(text)
        errors_are_json_through_the_proxy(url, wav(clip))


@pytest.mark.full
@pytest.mark.slow
def test_autoscaling_starts_ingresses_and_keeps_the_captions_of_those_that_it_stops(
    dashboard: str, weights: Path, speech: Path, tmp_path: Path
):
    waveforms = [waveform for waveform, _ in spoken(speech, 2)]
    config = read("serve.yaml")
    scaling = {"max_ingresses": 2, "ingress_cpus": 0.25}  # another replica above four requests each
    with deployed(config, dashboard, weights, tmp_path, engines=1, max_engines=1, **scaling) as url:
        expected = [transcribe(url, wav(waveform), "student") for waveform in waveforms]
        config["applications"][0]["deployments"] = [
            {"name": "Ingress", "autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
        ]

        async def sessions() -> list[list[str]]:
            pause = asyncio.Event()
            tasks = [asyncio.create_task(caption(url, waveforms, pause, "student")) for _ in range(8)]
            await wait_until(lambda: ingress_states() == {"RUNNING": 2})
            tasks += [asyncio.create_task(caption(url, waveforms, pause, "student")) for _ in range(8)]
            await wait_until(lambda: n_sessions(url) == (16, 2))
            ServeSubmissionClient(dashboard).deploy_applications(config)
            await wait_until(lambda: ingress_states() == {"RUNNING": 1, "STOPPING": 1})
            pause.set()
            return list(await asyncio.gather(*tasks))

        assert ingress_states() == {"RUNNING": 1}
        assert asyncio.run(sessions()) == [expected] * 16
        asyncio.run(wait_until(lambda: ingress_states() == {"RUNNING": 1}))  # it stops after its last session


def ingress_states() -> dict[str, int]:
    """Return the number of ingress replicas by state."""
    application = serve.status().applications.get("askd")
    deployment = application.deployments.get("Ingress") if application else None
    return {} if deployment is None else {str(state): n for state, n in deployment.replica_states.items() if n}


async def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.5)


def n_sessions(url: str) -> tuple[int, int]:
    """Return the number of requests in progress, and of replicas that have at least two of them."""
    active = [
        sample.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
        for sample in family.samples
        if sample.name == "askd_requests_active"
    ]
    return int(sum(active)) - 1, sum(value >= 2 for value in active)  # this request is one of them


@pytest.mark.full
@pytest.mark.slow
def test_ray_service_config_needs_a_key(dashboard: str, weights: Path, tmp_path: Path):
    config, keys = serve_configs()[1], tmp_path / "keys"
    keys.write_text("key-1\nkey-2\n", encoding="utf-8")
    one_node = {"engines": 1, "max_engines": 1}  # it is one engine a node there
    with deployed(config, dashboard, weights, tmp_path, keys_file=str(keys), **one_node) as url:
        assert httpx.get(f"{url}/-/healthz").text == "success"  # what KubeRay's probes look for
        assert httpx.get(f"{url}/v1/models").status_code == 401
        listed = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer key-2"})
        assert [model["id"] for model in listed.json()["data"]] == ["student"]


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
def test_ray_serve_has_the_same_settings_everywhere(name: str):
    output = (CLUSTER / name).read_text(encoding="utf-8")
    settings = [f"{key}={value}" for key, value in SETTINGS.items() if key.startswith("RAY_SERVE_")]
    assert len(settings) == 2
    assert all(setting in output for setting in settings)


CLOUDS = ["aws.yaml", "gcp.yaml"]


def test_ray_up_accepts_the_machines():
    config = read("ray-cluster.yaml")
    prepared = bootstrap_config(config, no_config_cache=True)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_config_fits_the_schema_and_grows_from_zero(name: str):
    config = read(name)
    validate_config(prepared := prepare_config(copy.deepcopy(config)))
    kinds = prepared["available_node_types"]
    assert kinds.keys() == {"head", "cpu", "gpu"} and prepared["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}  # no work on the head
    assert [kinds[name]["resources"] for name in ("cpu", "gpu")] == [{"CPU": 8}, {"CPU": 8, "GPU": 1}]
    assert all(kinds[name]["min_workers"] == 0 < kinds[name]["max_workers"] for name in ("cpu", "gpu"))
    assert sum(kind["max_workers"] for kind in kinds.values()) == prepared["max_workers"]
    assert '"SPOT"' in json.dumps(kinds["gpu"]["node_config"]).upper()
    assert config["file_mounts"] == read("ray-cluster.yaml")["file_mounts"]
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 6
    assert [c for c in commands if "#" in c] == []  # Ray writes a closing bracket after the command
    defaults = fillout_defaults({"provider": {"type": config["provider"]["type"]}})
    assert not set(defaults["setup_commands"]) & set(prepared["setup_commands"])  # they install another Ray
    validate_config(config | {"cluster_synced_files": []})
    with pytest.raises(ValidationError, match="max_workrs"):
        validate_config(prepared | {"max_workrs": 3})


@pytest.mark.slow
def test_ray_starts_nodes_on_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `ray up` does before it uses ssh, and what its autoscaler does, with moto in the place of AWS."""
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda _: None)
    (tmp_path / ".ssh").mkdir()  # Ray writes a new key there
    for variable, value in {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(variable, value)
    clear_provider_cache()
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        config = bootstrap_config(read("aws.yaml"), no_config_cache=True)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_LAUNCH_CONFIG: "x"}
            provider.create_node(kind["node_config"], tags, 1)
        ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
        nodes = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
        specs = {
            found["InstanceType"]: (found["VCpuInfo"]["DefaultVCpus"], found.get("GpuInfo", {}).get("Gpus", []))
            for found in ec2.describe_instance_types(InstanceTypes=[n["InstanceType"] for n in nodes])["InstanceTypes"]
        }
    clear_provider_cache()
    started = {node["InstanceType"]: node.get("InstanceLifecycle") for node in nodes}
    assert started == {"m7i.xlarge": None, "m7i.2xlarge": None, "g6.2xlarge": "spot"}
    assert specs["m7i.2xlarge"] == (8, [])  # what the file tells the autoscaler
    assert specs["g6.2xlarge"][0] == 8 and [gpu["Count"] for gpu in specs["g6.2xlarge"][1]] == [1]
    assert all(node["ImageId"].startswith("resolve:ssm:/aws/service/") for node in nodes)


def files_of_ray_up(home: Path) -> None:
    """Do what `ray up` does with file_mounts; the token is another one."""
    for remote, local in read("ray-cluster.yaml")["file_mounts"].items():
        target = home / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if local.startswith("~"):
            target.write_text("token", encoding="utf-8")
        elif (ROOT / local).is_dir():
            shutil.copytree(ROOT / local, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / local, target)


def files_of_the_image(folder: Path) -> None:
    """Do what COPY does."""
    for *sources, target in [line.split() for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)]:
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder)


@pytest.mark.slow
@pytest.mark.parametrize("copied", ["image", "nodes"])
def test_package_builds_from_the_copied_files(copied: str, tmp_path: Path):
    if copied == "image":
        files_of_the_image(tmp_path)
        folder = tmp_path
    else:
        files_of_ray_up(tmp_path)
        folder = tmp_path / "askd-ray"
    build_wheel = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build_wheel], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"askd_ray-{PROJECT['version']}-py3-none-any.whl" in done.stdout
    assert (folder / "constraints.txt").is_file()


@pytest.mark.parametrize("name", ["ray-cluster.yaml", *CLOUDS])
def test_ray_up_commands_start_ray_with_settings_and_token(name: str, tmp_path: Path):
    files_of_ray_up(tmp_path)
    ray_command, log = tmp_path / "bin" / "ray", tmp_path / "log"
    ray_command.parent.mkdir()
    ray_command.write_text(f'#!/bin/sh\necho "$@" >> {log}\nenv >> {log}\n', encoding="utf-8")
    ray_command.chmod(0o755)
    activate = tmp_path / "askd-ray" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={ray_command.parent}:$PATH", encoding="utf-8")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "192.168.0.10"}
    config = read(name)
    for commands, start in (
        (config["head_start_ray_commands"], "start --head --port=6379 --dashboard-host=127.0.0.1"),
        (config["worker_start_ray_commands"], "start --address=192.168.0.10:6379"),
    ):
        log.unlink(missing_ok=True)
        for command in commands:
            subprocess.run(["bash", "-c", command], env=environment, check=True)
        lines = log.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "stop"
        assert any(line.startswith(start) for line in lines)
        serve_settings = {f"{key}={value}" for key, value in SETTINGS.items() if key.startswith("RAY_SERVE_")}
        assert serve_settings | {"RAY_AUTH_MODE=token"} <= set(lines)
    assert (tmp_path / ".ray" / "auth_token").is_file()


def test_nodes_install_the_same_extras_with_constraints():
    names = ("Dockerfile", "ray-cluster.yaml", *CLOUDS)
    texts = [(CLUSTER / name).read_text(encoding="utf-8") for name in names]
    found = [re.findall(r"pip install (.+) '\.\[([\w,]+)\]'", text) for text in texts]
    assert all(len(installs) == 1 for installs in found)
    (extras,) = {extras for ((_, extras),) in found}
    assert all("--constraint constraints.txt" in options for ((options, _),) in found)
    assert set(extras.split(",")) == {"mlflow", "plot", "serve", "tune", "vocabulary"}
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_build_context_has_only_copied_files():
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]

    def sent(name: str) -> bool:  # the last pattern that fits decides
        fitting = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern.removeprefix("!"))]
        return not fitting or fitting[-1].startswith("!")

    copied = {name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    assert {path.name for path in ROOT.iterdir() if sent(path.name)} == copied
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt", "askd_ray"} == copied
    assert not sent("keys")
    assert "**/__pycache__" in patterns


def test_image_has_a_numeric_user_with_a_home_and_wget():
    user, _, group = IMAGE_USER.partition(":")
    assert user.isdigit()
    assert f"groupadd --gid {group} askd && useradd --uid {user} --gid {group} --create-home askd" in DOCKERFILE
    assert IMAGE_ENV["HOME"] == "/home/askd"
    assert f"chown {user}:{group} {IMAGE_ENV['ASKD_CACHE'].rpartition('/')[0]}" in DOCKERFILE
    assert IMAGE_ENV["HF_HOME"].startswith(f"{IMAGE_ENV['ASKD_CACHE']}/")
    assert re.search(r"apt-get install .*\bwget\b", DOCKERFILE)
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert f">={version}" == PROJECT["requires-python"]


def test_named_variables_are_read():
    files = [path for path in CLUSTER.rglob("*") if path.is_file()] + [ROOT / "docs" / "kubernetes.md"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    named = set(re.findall(r"\bASKD_[A-Z_]+", text)) - {"ASKD_KUBERAY_SCHEMAS"}
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "askd_ray").rglob("*.py"))
    assert named >= {"ASKD_CACHE", "ASKD_GIT_SHA"}
    assert [name for name in sorted(named) if f'"{name}"' not in source] == []


def test_dashboard_queries_existing_metrics():
    collectors = [number for number in vars(ServiceMetrics()).values() if isinstance(number, MetricWrapperBase)]
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    labels = {c._name + ending: {*c._labelnames, "le"} for c in collectors for ending in endings[c._type]}
    panels = json.loads((CLUSTER / "dashboards" / "askd.json").read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 10
    for expression in expressions:
        names = re.findall(r"\baskd_\w+", expression)
        used = re.findall(r"by \(([^)]*)\)", expression) + re.findall(r"(\w+)=~?\"", expression)
        assert names and set(names) <= labels.keys(), expression
        assert {label.strip() for part in used for label in part.split(",")} <= labels[names[0]], expression


def test_job_of_every_stage_is_the_command_line():
    assert [path.name for path in (ROOT / "jobs").glob("*.py")] == ["stage.py"]
    for stage in (*STAGES, "study", "serve"):
        command = [sys.executable, str(ROOT / "jobs" / "stage.py"), stage, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert shown.returncode == 0 and f" {stage} [OPTIONS]" in shown.stdout
