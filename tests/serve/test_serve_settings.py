from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from serving import bundle_of

from askd_ray.errors import AskdError
from askd_ray.serve.engine import Hardware
from askd_ray.serve.registry import Registry
from askd_ray.serve.settings import ServiceArgs, named_models


def test_models_by_name(tmp_path: Path, weights: Path):
    bundle = bundle_of(tmp_path / "student", weights)
    assert named_models(bundle, [f"base={weights}"]) == {"student": str(bundle), "base": str(weights.resolve())}
    for wrong in ("base", "=x", "base="):
        with pytest.raises(AskdError, match="NAME=BUNDLE"):
            named_models(None, [wrong])
    with pytest.raises(AskdError, match="each name once"):
        named_models(None, ["a=x", "a=y"])


def test_settings_are_checked_before_the_start(tmp_path: Path, weights: Path):
    registry = Registry(tmp_path / "registry")
    with pytest.raises(AskdError, match="no model to serve"):
        ServiceArgs(registry=str(registry.folder)).check()
    place = registry.add("fast", bundle_of(tmp_path / "student", weights))
    registry.promote("fast", place.name)
    both = ServiceArgs(models={"base": str(weights)}, registry=str(registry.folder))
    assert both.check() == ["base", "fast"]
    with pytest.raises(AskdError, match="has the name of another model"):
        ServiceArgs(models={"fast": str(weights)}, registry=str(registry.folder)).check()
    with pytest.raises(AskdError, match="no model in"):
        ServiceArgs(models={"fast": str(tmp_path)}).check()
    with pytest.raises(AskdError, match="cannot be read"):
        ServiceArgs(models={"base": str(weights)}, keys_file=str(tmp_path / "keys")).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus_per_engine": 0.5}, "gpus_per_engine has no effect with device cpu"),
        ({"device": "cuda", "gpus_per_engine": 0.0}, "greater than 0"),
        ({"device": "cuda", "gpus_per_engine": 2.0}, "less than or equal to 1"),
        ({"workers": 3}, "workers has no effect with device cpu"),
        ({"device": "cuda", "threads": 4}, "threads has no effect with device cuda"),
        ({"compute_type": "float16"}, "compute_type = float16: with device cpu, int8 or float32 is allowed"),
        ({"device": "cuda", "compute_type": "int8"}, "with device cuda, float16 or int8_float16 is allowed"),
        ({"batch_s": 90.0}, "batch_s = 90: a call takes at most 60 s with device cpu"),
        ({"device": "cuda", "batch_s": 500.0}, "at most 480 s with device cuda"),
        ({"engines": 3, "max_engines": 2}, "max_engines = 2 is below engines = 3"),
        ({"ingresses": 3, "max_ingresses": 2}, "max_ingresses = 2 is below ingresses = 3"),
        ({"max_ingresses": 4, "requests": 3}, "requests = 3: every ingress must accept at least one"),
        ({"ingress_cpus": 0.0}, "greater than 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        ServiceArgs(**settings)


def test_batches_and_workers_follow_the_device(weights: Path):
    models = {"m": str(weights)}
    on_cpu = ServiceArgs(models=models, threads=1)
    assert (on_cpu.hardware().batch_s, on_cpu.chunks_per_engine()) == (30.0, 4)
    assert ServiceArgs(models=models, threads=1, batch_s=12.0).hardware().batch_s == 12.0
    on_gpu = ServiceArgs(models=models, device="cuda")
    assert on_gpu.hardware() == Hardware("cuda", threads=1, workers=2, batch_s=480.0)
    assert on_gpu.chunks_per_engine() == 48
    quarter = ServiceArgs(models=models, device="cuda", gpus_per_engine=0.25, compute_type="int8_float16")
    assert quarter.hardware() == Hardware("cuda", 1, 2, 120.0, "int8_float16")
    assert quarter.chunks_per_engine() == 12
    chosen = ServiceArgs(models=models, device="cuda", workers=1, batch_s=60.0)
    assert (chosen.hardware().workers, chosen.hardware().batch_s, chosen.chunks_per_engine()) == (1, 60.0, 4)
