import platform

import psutil
import pytest
import torch

from askd_ray.torch_setup import release_memory


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
