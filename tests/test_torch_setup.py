import platform
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from askd_ray import torch_setup
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.evaluation.systems import open_system, weights_hash
from askd_ray.targets.pseudo_label import teacher_engine
from askd_ray.torch_setup import device_of, n_cores, release_memory, usable_device
from askd_ray.train import ray_trainer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_tensor_memory_returns_to_the_system():
    process = psutil.Process()
    large = torch.ones(8_000_000)
    del large  # from now on glibc takes blocks up to this size from its heap
    tensors = [torch.ones(1_000_000) for _ in range(100)]
    kept = tensors[::2]
    del tensors
    held = process.memory_info().rss
    release_memory()
    assert held - process.memory_info().rss > 100e6  # of the 200 MB between those that are kept
    assert all(bool((tensor == 1.0).all()) for tensor in kept)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), (None, 4)])
def test_container_cpu_quota_is_respected(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(torch_setup, "_CGROUP_QUOTA", file)
    monkeypatch.setattr(torch_setup.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert n_cores() == cores


def test_recipe_without_gpu_uses_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device_of(False), usable_device(False)) == ("cpu", "cpu")
    assert (device_of(True), usable_device(True)) == ("cuda", "cuda")


def test_unusable_gpu_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device(False) == "cpu"
    for cuda, why in (("13.0", "is built for CUDA 13.0"), (None, "is built for CPUs only")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(AskdError, match=why) as caught:
            usable_device(True)
        assert "\n" not in str(caught.value) and "--set train.workers.gpu=false" in str(caught.value)


def test_the_device_is_decided_in_one_place():
    """A recipe without ``train.workers.gpu`` took the first GPU, beside what Ray granted to others."""
    package = Path(torch_setup.__file__).parent
    asking = {p.name for p in package.rglob("*.py") if re.search(r"torch\.cuda|get_cuda_device_count", p.read_text())}
    assert asking == {"torch_setup.py"}


@pytest.fixture
def on_a_gpu_machine(monkeypatch: pytest.MonkeyPatch):
    """A machine of whose GPUs Ray has granted none to this process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("on_a_gpu_machine")
def test_worker_without_a_ray_gpu_uses_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_trainer, "get_device", lambda: torch.device("cuda:0"))  # as it does where none is granted
    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray_trainer.ray.train, "get_context", lambda: alone)
    assert ray_trainer.RayTrainContext(use_gpu=False).device.type == "cpu"
    assert ray_trainer.RayTrainContext(use_gpu=True).device.type == "cuda"


@pytest.mark.usefixtures("on_a_gpu_machine")
def test_teacher_and_compared_systems_stay_on_the_cpu(weights: Path):
    recipe = Recipe.model_validate({"teacher": {"model": str(weights)}, "targets": {"kind": "pseudo"}})
    assert teacher_engine(recipe).languages == ("en",)
    (both,) = open_system(str(weights)).transcribe([np.zeros(16_000, np.float32)], "en")
    assert both.served.ended is True
    assert weights_hash(str(weights)) != weights_hash(str(weights), "cuda")  # nor is one device's answer the other's


def test_tf32_is_for_gpus_and_not_for_exact_products():
    before = torch.get_float32_matmul_precision()
    try:
        torch_setup.use_tf32(torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == before
        torch_setup.use_tf32(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high"
        with torch_setup.exact_matmul():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
