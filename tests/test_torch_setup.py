import platform
from pathlib import Path

import psutil
import pytest
import torch

from askd_ray import torch_setup
from askd_ray.torch_setup import n_cores, release_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_holes_that_freed_tensors_leave_go_back_to_the_system():
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
def test_a_containers_share_of_the_cores_counts(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(torch_setup, "_CGROUP_QUOTA", file)
    monkeypatch.setattr(torch_setup.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert n_cores() == cores
