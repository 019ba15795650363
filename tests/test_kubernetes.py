"""cluster/kuberay/*.yaml against KubeRay's schemas, and against this package, its image and its page in docs/."""

import copy
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_rules as rules
import pytest
import ray
import yaml
from kubernetes_schema import SCHEMAS, documents, schema_of, troubles

# What KubeRay's head node runs on our manifests; Ray has no public function for it.
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from askd_ray.ray_jobs import STAGES
from askd_ray.serve.settings import ServiceArgs

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
FILES = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
RULES: dict[str, Callable[[rules.Manifests], list[str]]] = {
    "autoscaling": rules.autoscaling,
    "engines": rules.engines,
    "faults": rules.faults,
    "gpus": rules.gpus,
    "images": lambda found: rules.images(found, VERSION),
    "ports": rules.ports,
    "resources": rules.resources,
    "secrets": rules.secrets,
    "tokens": rules.tokens,
    "users": rules.users,
    "volumes": rules.volumes,
}


@pytest.fixture
def found() -> rules.Manifests:
    return rules.manifests()


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's schemas are not in {SCHEMAS}: set ASKD_KUBERAY_SCHEMAS")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_manifest_fits_the_kubernetes_schema(file: Path):
    found = documents(file.read_text(encoding="utf-8"))
    assert {doc["kind"]: troubles(doc, schema_of(doc["kind"])) for doc in found} == {doc["kind"]: [] for doc in found}


@pytest.mark.parametrize("rule", RULES)
def test_manifests_follow_the_rule(rule: str, found: rules.Manifests):
    assert RULES[rule](found) == []


def test_page_applies_the_files_in_order():
    applied = re.findall(r"^kubectl (?:apply|create) -f cluster/kuberay/([\w.-]+)", PAGE, re.MULTILINE)
    assert applied[0] == "volume.yaml"
    assert set(applied) == {file.name for file in FILES}


def set_at(found: rules.Manifests, path: str, value: Any) -> None:
    """Set what a dotted path leads to; None deletes it."""
    *parts, last = path.split(".")
    place: Any = found
    for part in parts:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value


JOB, SERVICE = "RayJob.spec.rayClusterSpec", "RayService.spec.rayClusterConfig"
HEAD, WORKER, GPU_POD = (
    "headGroupSpec.template.spec",
    "workerGroupSpecs.0.template.spec",
    "workerGroupSpecs.1.template.spec",
)
FAULTS: list[tuple[str, str, Any, str]] = [
    ("users", f"{JOB}.{HEAD}.securityContext", None, "RayJob head: fsGroup must be 10001"),
    ("users", f"{SERVICE}.{WORKER}.securityContext.runAsUser", 1000, "RayService group cpu: runAsUser must be 10001"),
    (
        "gpus",
        f"{JOB}.{HEAD}.containers",
        [{"resources": {"limits": {rules.GPU: 1}}}],
        "RayJob: the head asks for a GPU",
    ),
    ("gpus", f"{JOB}.headGroupSpec.rayStartParams.num-gpus", "1", "RayJob: the head asks for a GPU"),
    ("gpus", f"{JOB}.workerGroupSpecs.1.rayStartParams.num-gpus", "2", "num-gpus is not the GPUs of the pod"),
    ("gpus", f"{JOB}.workerGroupSpecs.1.minReplicas", 1, "holds GPUs that nobody asked for"),
    ("gpus", f"{SERVICE}.{GPU_POD}.tolerations", None, "does not tolerate the taint"),
    ("gpus", f"{SERVICE}.{GPU_POD}.nodeSelector", None, "no nodeSelector"),
    ("gpus", f"{SERVICE}.{GPU_POD}.containers", [{"resources": {}}], "one group with GPUs and one without"),
    ("autoscaling", f"{JOB}.enableInTreeAutoscaling", False, "enableInTreeAutoscaling is not set"),
    ("autoscaling", f"{JOB}.workerGroupSpecs.0.minReplicas", None, "minReplicas <= replicas <= maxReplicas"),
    ("autoscaling", f"{JOB}.workerGroupSpecs.0.maxReplicas", 0, "minReplicas <= replicas <= maxReplicas"),
    ("autoscaling", f"{JOB}.headGroupSpec.rayStartParams", {}, "work is placed on the head"),
    ("resources", f"{JOB}.{WORKER}.containers", [{"resources": {"requests": {"cpu": 1}}}], "Ray counts limits"),
    ("resources", f"{SERVICE}.{HEAD}.containers", [{}], "RayService head: no resources.limits.memory"),
    ("tokens", f"{JOB}.authOptions", None, "RayJob: authOptions.mode is not token"),
    ("tokens", f"{SERVICE}.authOptions.mode", "disabled", "RayService: authOptions.mode is not token"),
    ("secrets", f"{SERVICE}.{WORKER}.volumes", [], "RayService group cpu: keys_file is in no Secret"),
    ("secrets", "Secret", {"metadata": {"name": "askd-redis"}}, "make it with kubectl"),
    ("faults", f"{SERVICE}.gcsFaultToleranceOptions", None, "no gcsFaultToleranceOptions.redisAddress"),
    ("faults", f"{SERVICE}.gcsFaultToleranceOptions.redisPassword", {"value": "x"}, "comes from no Secret"),
    ("faults", "RayJob.spec.backoffLimit", 0, "it is not tried again"),
    ("volumes", f"{JOB}.{HEAD}.volumes", [], "RayJob head: no volume data"),
    ("volumes", "PersistentVolumeClaim.spec.accessModes", ["ReadWriteOnce"], "need ReadWriteMany"),
    ("volumes", "PersistentVolumeClaim.metadata.name", "other", "no manifest makes the claim askd-data"),
    ("volumes", "RayJob.spec.entrypoint", "askd label --set runs_root=/runs", "/runs is not on a shared volume"),
    ("autoscaling", f"{JOB}.workerGroupSpecs.0.minReplicas", 1, "RayJob group cpu: holds nodes that nobody asked for"),
    ("engines", f"{SERVICE}.workerGroupSpecs.0.maxReplicas", 3, "max_engines 4, and room for 3 at most"),
    ("ports", "RayService.spec.serveConfigV2", "http_options: {port: 8000}\nproxy_location: HeadOnly", "HeadOnly"),
    ("ports", f"{SERVICE}.headGroupSpec.template.spec.containers", [{"name": "x"}], "port serve is not"),
]


@pytest.mark.parametrize(("rule", "path", "value", "expected"), FAULTS, ids=lambda part: str(part)[-60:])
def test_the_rule_notices_a_fault(rule: str, path: str, value: Any, expected: str, found: rules.Manifests):
    changed = copy.deepcopy(found)  # each anchor becomes a part of its own
    changed = yaml.safe_load(yaml.dump(changed, Dumper=WithoutAnchors))
    set_at(changed, path, value)
    assert any(expected in trouble for trouble in RULES[rule](changed)), RULES[rule](changed)


def test_engines_on_parts_of_gpus_fit_in_the_pods(found: rules.Manifests):
    rules.with_gpu_engines(found, max_engines=8)
    assert RULES["engines"](found) == [] == RULES["ports"](found) == RULES["secrets"](found)
    args = rules.serve_config(found)["applications"][0]["args"]
    assert ServiceArgs.model_validate(args).gpus_per_engine == 0.5
    text = (rules.FOLDER / "rayservice.yaml").read_text(encoding="utf-8")
    assert "# device: cuda" in text and "# gpus_per_engine: 0.5" in text


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"max_engines": 9}, "max_engines 9, and room for 8 at most"),
        ({"gpus_per_engine": 0.1, "max_engines": 17}, "max_engines 17, and room for 16 at most"),  # a CPU each
        ({"max_ingresses": 20}, "ingresses need 20 CPUs of 16"),
    ],
)
def test_the_rule_notices_gpu_engines_without_room(args: dict[str, Any], expected: str, found: rules.Manifests):
    rules.with_gpu_engines(found, **args)
    assert RULES["engines"](found) == [f"RayService: {expected}"]


@pytest.mark.parametrize(("kind", "gpu_cpus"), [("RayJob", 8), ("RayService", 4)])
def test_ray_autoscaler_reads_the_worker_groups(kind: str, gpu_cpus: int, found: rules.Manifests):
    """It makes its own configuration of the cluster, and checks that against its own schema."""
    cluster = {"metadata": {"name": "askd", "namespace": "default"}, "spec": rules.clusters(found)[kind]}
    config = _derive_autoscaling_config_from_ray_cr(json.loads(json.dumps(cluster)))
    kinds = config["available_node_types"]
    resources = {name: {what: kind["resources"].get(what) for what in ("CPU", "GPU")} for name, kind in kinds.items()}
    assert resources.pop("headgroup") == {"CPU": 0, "GPU": None}
    assert resources == {"cpu": {"CPU": 4, "GPU": None}, "gpu": {"CPU": gpu_cpus, "GPU": 1}}
    for group in cluster["spec"]["workerGroupSpecs"]:
        bounds = (group["minReplicas"], group["maxReplicas"])
        assert bounds == tuple(kinds[group["groupName"]][name] for name in ("min_workers", "max_workers"))


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_head_has_no_gpu(kind: str, found: rules.Manifests):
    """What an anchor shares is one object here too."""
    cluster = rules.clusters(found)[kind]
    cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"][rules.GPU] = 1
    assert rules.gpu_count(cluster["headGroupSpec"]["template"]["spec"]) == 0


class WithoutAnchors(yaml.SafeDumper):
    """YAML in which nothing is shared, so that a change at one place is a change at one place."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("askd-ray:0.1.0", "a registry, a name and a tag are expected"),
        ("registry.example.com/askd-ray", "a registry, a name and a tag are expected"),
        ("registry.example.com/askd-ray:latest", "the tag 0.1.0 are expected"),
        ("registry.example.com/askd-ray:0.2.0", "2 images"),
    ],
)
def test_the_rule_notices_another_image(image: str, expected: str, found: rules.Manifests):
    set_at(found, f"{JOB}.{WORKER}.containers", [{"image": image}])
    assert any(expected in trouble for trouble in rules.images(found, VERSION))


def test_the_rule_notices_a_secret_in_plain_text(found: rules.Manifests):
    for _, container in rules.containers(found):
        container["env"] = [{"name": "HF_TOKEN", "value": "hf_1"}]
    assert "RayJob head: HF_TOKEN is written down: take it from a Secret" in rules.secrets(found)


@pytest.mark.parametrize("user", ["askd", "0:0", "10001", "10001:0"])
def test_the_rule_notices_a_user_that_is_not_numeric(user: str, found: rules.Manifests):
    assert rules.users(found, user) == [
        f"Dockerfile: USER {user} is no number that is not root's: runAsNonRoot cannot be checked"
    ]


def test_the_rule_notices_a_cache_outside_the_volume(found: rules.Manifests):
    found_troubles = rules.volumes(found, rules.IMAGE_ENV | {"HF_HOME": "/home/askd/.cache/huggingface"})
    assert "RayJob group gpu: /home/askd/.cache/huggingface is not on a shared volume" in found_troubles


def test_job_runs_every_stage_and_stops_at_the_first_failure(found: rules.Manifests, tmp_path: Path):
    """The way of the command: KubeRay's shell, `ray job submit`, the shell of the job."""
    entrypoint = found["RayJob"]["spec"]["entrypoint"]
    assert run_entrypoint(entrypoint, tmp_path, "none") == ["prepare", "label", "distill", "export", "evaluate"]
    assert run_entrypoint(entrypoint, tmp_path, "distill") == ["prepare", "label", "distill"]
    with_variables = "bash -c 'for stage in prepare label; do askd $stage --recipe x; done'"
    assert run_entrypoint(with_variables, tmp_path, "none") == ["--recipe", "--recipe"]  # as it was once


def run_entrypoint(entrypoint: str, folder: Path, failing: str) -> list[str]:
    """Return the first argument of each `askd` that is called."""
    log, stub = folder / "log", folder / "askd"
    log.write_text("", encoding="utf-8")
    stub.write_text(f'#!/bin/sh\necho "$1" >> {log}\ntest "$1" != {failing}\n', encoding="utf-8")
    stub.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", rules.submitted(entrypoint)], env={"PATH": path})
    assert (done.returncode == 0) == (failing == "none")
    return log.read_text(encoding="utf-8").split()


def test_job_names_existing_stages(found: rules.Manifests):
    stages = re.findall(r"\baskd (\S+)", found["RayJob"]["spec"]["entrypoint"])
    assert set(stages) == set(STAGES) - {"tune"}


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_nodes_run_the_installed_ray_version(kind: str, found: rules.Manifests):
    assert rules.clusters(found)[kind]["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_page_creates_every_secret(found: rules.Manifests):
    made = dict(
        re.findall(r"^kubectl create secret generic ([\w-]+)((?: --from-\S+)+)", PAGE.replace("\\\n", ""), re.M)
    )
    text = yaml.dump(found)
    named = set(re.findall(r"secretName: ([\w-]+)", text)) | set(
        re.findall(r"name: (askd-(?:credentials|redis))", text)
    )
    assert named == made.keys() == {"askd-api-keys", "askd-credentials", "askd-redis"}
    assert "--from-file=keys=" in made["askd-api-keys"]
    assert "--from-literal=password=" in made["askd-redis"]
    assert "kubectl create secret docker-registry askd-registry" in PAGE


def test_the_image_and_the_page_name_the_image_of_the_manifests(found: rules.Manifests):
    (image,) = {container["image"] for _, container in rules.containers(found)}
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    assert dockerfile.count(image) == 2
    assert image in PAGE
    assert set(re.findall(r"[\w.-]+/askd-ray:[\w.-]+", dockerfile + PAGE)) >= {image}


def test_page_agrees_with_the_manifests(found: rules.Manifests):
    for kind in ("PersistentVolumeClaim", "Pod"):
        assert found[kind]["metadata"]["name"] in PAGE
    assert f"svc/{found['RayService']['metadata']['name']}-serve-svc" in PAGE
    lines = [line.split(":")[0].strip(" -") for file in FILES for line in marked_lines(file)]
    assert set(lines) == {"image", "storageClassName", "nodeSelector", "redisAddress", "models"}
    assert [name for name in set(lines) if not re.search(rf"^\| `?{name}\b", PAGE, re.MULTILINE)] == []


def marked_lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if "# change:" in line]
