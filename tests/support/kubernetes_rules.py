"""Helper: what a schema cannot say of cluster/kuberay/*.yaml, rule by rule. Each returns the troubles that it finds.

A manifest is a pair of file name and document, so a test can change one and see that its rule notices.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from subprocess import list2cmdline
from typing import Any

import yaml
from kubernetes_schema import documents

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
GPU = "nvidia.com/gpu"
SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)

Manifests = dict[str, Any]
"""Documents by their kind; there is one of each."""


def manifests(folder: Path = FOLDER) -> Manifests:
    found = [doc for file in sorted(folder.glob("*.yaml")) for doc in documents(file.read_text(encoding="utf-8"))]
    by_kind = {doc["kind"]: doc for doc in found}
    assert len(by_kind) == len(found)
    return by_kind


def clusters(found: Manifests) -> dict[str, Any]:
    """Return the clusters by the kind of what starts them."""
    return {
        "RayJob": found["RayJob"]["spec"]["rayClusterSpec"],
        "RayService": found["RayService"]["spec"]["rayClusterConfig"],
    }


def pods(found: Manifests) -> dict[str, Any]:
    """Return the spec of every pod by where it stands."""
    made: dict[str, Any] = {"Pod": found["Pod"]["spec"]} if "Pod" in found else {}
    if submitter := found["RayJob"]["spec"].get("submitterPodTemplate"):
        made["RayJob submitter"] = submitter["spec"]
    for kind, cluster in clusters(found).items():
        made[f"{kind} head"] = cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            made[f"{kind} group {group['groupName']}"] = group["template"]["spec"]
    return made


def containers(found: Manifests) -> Iterator[tuple[str, Any]]:
    for where, pod in pods(found).items():
        for container in pod["containers"]:
            yield where, container


def dockerfile(text: str) -> tuple[dict[str, str], str]:
    """Return the environment of the image and its last USER."""
    joined = re.sub(r"\\\n\s*", " ", text)
    pairs = [pair for line in re.findall(r"^ENV (.+)$", joined, re.MULTILINE) for pair in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs), re.findall(r"^USER (\S+)$", joined, re.MULTILINE)[-1]


IMAGE_ENV, IMAGE_USER = dockerfile((ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8"))


def users(found: Manifests, image_user: str = IMAGE_USER) -> list[str]:
    """Return pods that do not run as the image's numeric user, or whose volumes are not given to its group."""
    user, _, group = image_user.partition(":")
    if not user.isdigit() or user == "0" or group != user:
        return [f"Dockerfile: USER {image_user} is no number that is not root's: runAsNonRoot cannot be checked"]
    required = {"runAsNonRoot": True, "runAsUser": int(user), "runAsGroup": int(user), "fsGroup": int(user)}
    return [
        f"{where}: {name} must be {value}"
        for where, pod in pods(found).items()
        for name, value in required.items()
        if pod.get("securityContext", {}).get(name) != value
    ]


def volumes(found: Manifests, image_env: dict[str, str] = IMAGE_ENV) -> list[str]:
    """Return what is read or written on nodes outside the shared volume, and mounts that lead nowhere."""
    found_troubles: list[str] = []
    for where, pod in pods(found).items():
        sources = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            found_troubles += [f"{where}: no volume {name}" for name in mounts.keys() ^ sources.keys()]
            shared = [path for name, path in mounts.items() if "persistentVolumeClaim" in sources.get(name, {})]
            needs_data = where != "RayJob submitter" and where != "RayService head"
            environment = image_env | {env["name"]: env.get("value", "") for env in container.get("env", [])}
            paths = (
                [environment.get("ASKD_CACHE", "nowhere"), environment.get("HF_HOME", "nowhere")] if needs_data else []
            )
            paths += data_paths(found, where) if needs_data else []
            found_troubles += [
                f"{where}: {path} is not on a shared volume" for path in paths if not under(path, shared)
            ]
    claim = found.get("PersistentVolumeClaim")
    for where, pod in pods(found).items():
        for volume in pod.get("volumes", []):
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            if name and (claim is None or claim["metadata"]["name"] != name):
                found_troubles.append(f"{where}: no manifest makes the claim {name}")
    if claim and claim["spec"]["accessModes"] != ["ReadWriteMany"]:
        found_troubles.append("PersistentVolumeClaim: pods on several nodes need ReadWriteMany")
    return found_troubles


def data_paths(found: Manifests, where: str) -> list[str]:
    """Return the paths that the command of the job, or the arguments of the service, name."""
    if where.startswith("RayJob"):
        return re.findall(r"(?:--recipe |runs_root=|data_root=)([^\s'\"]+)", found["RayJob"]["spec"]["entrypoint"])
    if where.startswith("RayService"):
        args = serve_config(found)["applications"][0]["args"]
        return [*args.get("models", {}).values(), *filter(None, [args.get("registry")])]
    return []


def under(path: str, folders: list[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def serve_config(found: Manifests) -> Any:
    return yaml.safe_load(found["RayService"]["spec"]["serveConfigV2"])


def gpus(found: Manifests) -> list[str]:
    """Return GPUs that are asked for on a head, or by workers that no GPU node would take, and clusters without any."""
    found_troubles: list[str] = []
    for kind, cluster in clusters(found).items():
        head, groups = cluster["headGroupSpec"], {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        if gpu_count(head["template"]["spec"]) or head["rayStartParams"].get("num-gpus", "0") != "0":
            found_troubles.append(f"{kind}: the head asks for a GPU")
        with_gpu = {name: group for name, group in groups.items() if gpu_count(group["template"]["spec"])}
        if not with_gpu or len(with_gpu) == len(groups):
            found_troubles.append(f"{kind}: one group with GPUs and one without are expected")
        for name, group in with_gpu.items():
            pod = group["template"]["spec"]
            if group.get("minReplicas") or group.get("replicas"):
                found_troubles.append(f"{kind} group {name}: holds GPUs that nobody asked for")
            if not any(toleration.get("key") == GPU for toleration in pod.get("tolerations", [])):
                found_troubles.append(f"{kind} group {name}: does not tolerate the taint of GPU nodes")
            if not pod.get("nodeSelector"):
                found_troubles.append(f"{kind} group {name}: no nodeSelector")
            if group["rayStartParams"].get("num-gpus", str(gpu_count(pod))) != str(gpu_count(pod)):
                found_troubles.append(f"{kind} group {name}: num-gpus is not the GPUs of the pod")
    return found_troubles


def gpu_count(pod: Any) -> int:
    """Return the GPUs of a pod; Kubernetes wants requests and limits of them to be the same."""
    resources = [container.get("resources", {}) for container in pod["containers"]]
    asked = [{kind: int(part.get(kind, {}).get(GPU, 0)) for kind in ("requests", "limits")} for part in resources]
    return max((max(one.values()) for one in asked), default=0)


def resources(found: Manifests) -> list[str]:
    """Return containers without bounds, and Ray nodes whose limits are not what they are placed by."""
    troubles = [
        f"{where}: no resources.{kind}.{what}"
        for where, container in containers(found)
        for kind in ("requests", "limits")
        for what in ("cpu", "memory")
        if what not in container.get("resources", {}).get(kind, {})
    ]
    for where, container in containers(found):
        asked = container.get("resources", {})
        if ("head" in where or "group" in where) and asked.get("requests") != asked.get("limits"):
            troubles.append(f"{where}: Ray counts limits, Kubernetes places by requests: they must be the same")
    return troubles


def autoscaling(found: Manifests) -> list[str]:
    """Return clusters that do not grow with the work, and bounds that contradict one another."""
    found_troubles: list[str] = []
    for kind, cluster in clusters(found).items():
        if cluster.get("enableInTreeAutoscaling") is not True:
            found_troubles.append(f"{kind}: enableInTreeAutoscaling is not set")
        if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            found_troubles.append(f"{kind}: work is placed on the head")
        for group in cluster["workerGroupSpecs"]:
            if kind == "RayJob" and group.get("minReplicas"):
                found_troubles.append(f"{kind} group {group['groupName']}: holds nodes that nobody asked for")
            bounds = [group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")]
            if None in bounds or not 0 <= bounds[0] <= bounds[1] <= bounds[2] or bounds[0] == bounds[2]:
                found_troubles.append(
                    f"{kind} group {group['groupName']}: minReplicas <= replicas <= maxReplicas: {bounds}"
                )
    return found_troubles


def tokens(found: Manifests) -> list[str]:
    """Return clusters whose ports run what anybody sends."""
    return [
        f"{kind}: authOptions.mode is not token"
        for kind, cluster in clusters(found).items()
        if cluster.get("authOptions", {}).get("mode") != "token"
    ]


def secrets(found: Manifests) -> list[str]:
    """Return secrets that stand in a manifest, and a service whose keys do not come from a Secret."""
    troubles = [f"Secret {found['Secret']['metadata']['name']}: make it with kubectl"] if "Secret" in found else []
    for where, container in containers(found):
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                troubles.append(f"{where}: {variable['name']} is written down: take it from a Secret")
    args = serve_config(found)["applications"][0]["args"]
    for where, pod in pods(found).items():
        if where.startswith("RayService group"):
            from_secret = {volume["name"] for volume in pod.get("volumes", []) if "secret" in volume}
            mounts = [m for c in pod["containers"] for m in c.get("volumeMounts", []) if m["name"] in from_secret]
            if not under(args.get("keys_file", "nowhere"), [mount["mountPath"] for mount in mounts]):
                troubles.append(f"{where}: keys_file is in no Secret: everybody would be let in")
    return troubles


def faults(found: Manifests) -> list[str]:
    """Return a service that ends with its head, and a job that is not tried again."""
    options = clusters(found)["RayService"].get("gcsFaultToleranceOptions", {})
    troubles: list[str] = []
    if not re.fullmatch(r"(rediss?://)?[\w.-]+:\d+", options.get("redisAddress", "")):
        troubles.append("RayService: no gcsFaultToleranceOptions.redisAddress")
    if "secretKeyRef" not in options.get("redisPassword", {}).get("valueFrom", {}):
        troubles.append("RayService: redisPassword comes from no Secret")
    if found["RayJob"]["spec"].get("backoffLimit", 0) < 1:
        troubles.append("RayJob: it is not tried again when its head is lost")
    return troubles


def images(found: Manifests, version: str) -> list[str]:
    """Return images without a registry or with another tag than the package's version, and a second image."""
    names = {container["image"] for _, container in containers(found)}
    troubles = [f"{len(names)} images: {', '.join(sorted(names))}"] if len(names) > 1 else []
    for name in sorted(names):
        parts = re.fullmatch(r"([\w-]+(?:\.[\w-]+)+(?::\d+)?)/([\w./-]+):([\w.-]+)", name)
        if parts is None:
            troubles.append(f"{name}: a registry, a name and a tag are expected")
        elif not parts[1].endswith("example.com") or parts[3] != version:
            troubles.append(f"{name}: registry.example.com and the tag {version} are expected")
    return troubles


def ports(found: Manifests) -> list[str]:
    """Return what keeps KubeRay's probes and its Service from the proxies."""
    config = serve_config(found)
    options, proxies = config.get("http_options", {}), config.get("proxy_location", "EveryNode")
    troubles = [] if proxies == "EveryNode" else [f"proxy_location {proxies}: probes ask a proxy on every node"]
    if options.get("host") != "0.0.0.0":
        troubles.append("http_options.host: a proxy on loopback is seen by nobody")
    for where, container in containers(found):
        if where.startswith("RayService"):
            named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            if named.get("serve") != options.get("port"):
                troubles.append(f"{where}: port serve is not http_options.port")
    return troubles


def engines(found: Manifests) -> list[str]:
    """Return engines for which there is no node, or part of a GPU, and ingresses for which there is no CPU."""
    config, groups = serve_config(found), clusters(found)["RayService"]["workerGroupSpecs"]
    (application,) = config["applications"]
    options = {deployment["name"]: deployment for deployment in application.get("deployments", [])}
    args, with_gpu = application["args"], application["args"].get("device", "cpu") == "cuda"
    max_per_node = options.get("Engine", {}).get("max_replicas_per_node")
    if not with_gpu and max_per_node != 1:
        return ["RayService: engines share a node, and each takes all of its cores"]
    if with_gpu and max_per_node is not None:
        return ["RayService: max_replicas_per_node leaves a part of each GPU idle"]
    room, cpus = 0, 0
    for group in groups:
        pod = group["template"]["spec"]
        pod_cpus = sum(int(container["resources"]["limits"]["cpu"]) for container in pod["containers"])
        if with_gpu:
            n_engines = int(gpu_count(pod) / args.get("gpus_per_engine", 1.0))
        else:
            n_engines = 0 if gpu_count(pod) else 1
        room += group["maxReplicas"] * min(n_engines, pod_cpus)  # Ray reserves a CPU for each engine
        cpus += 0 if gpu_count(pod) else group["maxReplicas"] * (pod_cpus - n_engines)
    max_engines = args.get("max_engines", args.get("engines", 1))
    needed = args.get("max_ingresses", args.get("ingresses", 1)) * args.get("ingress_cpus", 1.0)
    troubles = [] if max_engines <= room else [f"RayService: max_engines {max_engines}, and room for {room} at most"]
    return troubles + ([] if needed <= cpus else [f"RayService: ingresses need {needed:g} CPUs of {cpus}"])


def with_gpu_engines(found: Manifests, **args: Any) -> None:
    """Do what the comments of the service say about engines on GPUs."""
    config = serve_config(found)
    (application,) = config["applications"]
    application["args"] |= {"device": "cuda", "gpus_per_engine": 0.5} | args
    del application["deployments"]
    found["RayService"]["spec"]["serveConfigV2"] = yaml.safe_dump(config)


def submitted(entrypoint: str) -> str:
    """Return the command as the cluster's shell gets it from `ray job submit`, which KubeRay calls in a shell."""
    return list2cmdline(shlex.split(entrypoint))
