"""The check of manifests itself: what kubernetes_schema.py refuses."""

from typing import Any

import pytest
import yaml
from kubernetes_schema import documents, schema_of, strict, troubles

SCHEMA = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
        "count": {"type": "integer", "format": "int32"},
        "free": {"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "ports": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
            "x-kubernetes-list-map-keys": ["name"],
        },
    },
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"size": "4Gi", "free": {"b": 1}, "labels": {"x": "y"}, "ports": [{"name": "a"}, {"name": "b"}]}, []),
        ({"size": 1, "sice": 2}, [": Additional properties are not allowed ('sice' was unexpected)"]),
        ({"size": 1.5}, ["size: 1.5 is not valid under any of the given schemas", "size: 1.5 is not of type"]),
        ({}, [": 'size' is a required property"]),
        ({"size": 1, "count": 2**31}, ["count: 2147483648 is greater than the maximum of 2147483647"]),
        ({"size": 1, "labels": {"x": 1}}, ["labels.x: 1 is not of type 'string'"]),
        ({"size": 1, "ports": [{"nam": "a"}]}, ["ports.0: Additional properties"]),
        ({"size": 1, "ports": [{"name": "a"}, {"name": "a"}]}, ["ports: two entries with name"]),
    ],
)
def test_the_check_of_schemas(value: Any, expected: list[str]):
    found = troubles(value, SCHEMA)
    assert len(found) == len(expected)
    assert all(trouble.startswith(start) for trouble, start in zip(found, expected, strict=True)), found


def test_a_field_that_is_called_properties_is_a_field():
    schema = {
        "type": "object",
        "properties": {"properties": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    assert strict(schema)["properties"]["properties"]["additionalProperties"] is False
    assert troubles({"properties": {"a": "x"}}, schema) == []


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Service", "Secret", "ConfigMap"])
def test_the_check_of_built_in_objects(kind: str):
    schema = schema_of(kind)
    named = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "askd"}}
    assert len(troubles(named | {"sepc": {}}, schema)) >= 1
    assert any("metadata" in trouble for trouble in troubles(named | {"metadata": {"name": "A_B"}}, schema))


def test_a_key_that_comes_twice_is_an_error():
    with pytest.raises(yaml.YAMLError, match="twice: a"):
        documents("a: 1\nb: 2\na: 3")
    assert documents("x: &x {a: 1}\ny: *x\n---\nz: 1\n---\n") == [{"x": {"a": 1}, "y": {"a": 1}}, {"z": 1}]
