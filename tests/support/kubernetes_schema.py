"""Helper: checks a manifest as strictly as `kubectl --validate=strict` and an API server together do.

KubeRay's schemas lie outside this repository: beside the checkout, or where ASKD_KUBERAY_SCHEMAS says. An API server
drops a field that a schema does not know without a word, so such a field is an error here.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(os.environ.get("ASKD_KUBERAY_SCHEMAS") or ROOT.parent / "shared" / "data" / "kuberay")
INTEGERS = {"int32": 2**31, "int64": 2**63}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
    "required": ["name"],
}
CLAIM = {
    "type": "object",
    "properties": {
        "storageClassName": {"type": "string"},
        "accessModes": {
            "type": "array",
            "items": {"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]},
        },
        "volumeMode": {"enum": ["Filesystem", "Block"]},
        "volumeName": {"type": "string"},
        "selector": {"type": "object"},
        "dataSource": {"type": "object"},
        "resources": {
            "type": "object",
            "properties": {"requests": {"type": "object", "properties": {"storage": {"type": "string"}}}},
            "required": ["requests"],
        },
    },
    "required": ["accessModes", "resources"],
}
SERVICE = {
    "type": "object",
    "properties": {
        "type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
        "selector": TEXTS,
        "clusterIP": {"type": "string"},
        "ports": {"type": "array", "items": {"type": "object", "required": ["port"]}},
    },
    "required": ["ports"],
}


class UniqueKeys(yaml.SafeLoader):
    """YAML as kubectl reads it: a key that comes twice in a mapping is an error. Anchors are resolved."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML file, without empty ones."""
    return [document for document in yaml.load_all(text, Loader=UniqueKeys) if document is not None]


def strict(schema: Any) -> Any:
    """Return Kubernetes' kind of schema as a JSON schema that refuses fields it does not know."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {
        name: {key: strict(part) for key, part in schema[name].items()} for name in schema if name == "properties"
    }
    made = {name: strict(part) for name, part in schema.items() if name != "properties"} | fields
    if fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("format") in INTEGERS:
        limit = INTEGERS[schema["format"]]
        made = {"minimum": -limit, "maximum": limit - 1} | made
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _unique(validator: Any, keys: list[str], items: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """Check a list of which Kubernetes says that some fields tell its entries apart."""
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    for twice in sorted({str(entry) for entry in seen if seen.count(entry) > 1}):
        yield jsonschema.ValidationError(f"two entries with {', '.join(keys)} = {twice}")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _unique})


def troubles(value: Any, schema: Any) -> list[str]:
    """Return what a strict check against a schema of Kubernetes finds, with the path to each."""
    found = sorted(Validator(strict(schema)).iter_errors(value), key=lambda error: [str(part) for part in error.path])
    return [f"{'.'.join(str(part) for part in error.path)}: {error.message[:200]}" for error in found]


def schema_of(kind: str) -> Any:
    """Return the schema of a kind that the manifests use: KubeRay's from its files, pods from inside one of them."""
    known = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices", "Pod": "rayclusters"}
    if kind in known:
        schema = json.loads((SCHEMAS / f"{known[kind]}.v1.schema.json").read_text(encoding="utf-8"))
        if kind == "Pod":
            head = schema["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
            schema = whole(head["template"]["properties"]["spec"], "v1", kind)
    else:
        specs = {"PersistentVolumeClaim": CLAIM, "Service": SERVICE}
        schema = whole(specs[kind], "v1", kind) if kind in specs else plain(kind)
    schema = copy.deepcopy(schema)
    schema["properties"]["metadata"] = METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", *(["spec"] if "spec" in schema["properties"] else [])]
    if kind.startswith("Ray"):
        schema["properties"]["apiVersion"], schema["properties"]["kind"] = {"const": "ray.io/v1"}, {"const": kind}
    return schema


def whole(spec: Any, version: str, kind: str) -> dict[str, Any]:
    """Return the schema of a built-in object around that of its spec."""
    return {"type": "object", "properties": {"apiVersion": {"const": version}, "kind": {"const": kind}, "spec": spec}}


def plain(kind: str) -> dict[str, Any]:
    """Return the schema of a Secret or a ConfigMap."""
    fields = {"Secret": {"type": {"type": "string"}, "stringData": TEXTS, "data": TEXTS}, "ConfigMap": {"data": TEXTS}}
    return {"type": "object", "properties": {"apiVersion": {"const": "v1"}, "kind": {"const": kind}, **fields[kind]}}
