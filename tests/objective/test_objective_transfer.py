from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.data.collate import empty_batch
from askd_ray.objective import transfer
from askd_ray.objective.transfer import PackedArrays, arrays_of, on_device

DTYPES = [np.int64, np.float32, np.float16, np.bool_, np.int16]
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=6))
def test_one_buffer_gives_the_arrays_back(kinds: list[tuple[tuple[int, ...], type]]):
    rng = np.random.default_rng(0)
    arrays = {str(i): (100 * rng.standard_normal(shape)).astype(dtype) for i, (shape, dtype) in enumerate(kinds)}
    arrays["transposed"] = np.arange(6.0).reshape(2, 3).T
    packed = PackedArrays.of(arrays, pinned=False)
    found = packed.unpack(packed.buffer.clone())
    assert packed.buffer.dtype == torch.uint8 and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
        assert found[name].numpy().dtype == array.dtype


@pytest.mark.parametrize("n_batches", [0, 1, 3])
def test_the_next_copy_to_a_gpu_starts_before_a_batch_is_used(n_batches: int, monkeypatch: pytest.MonkeyPatch):
    """Without a GPU: copies and pinned memory are those of the host here."""
    events, pack = list[str](), PackedArrays.of

    def start_copy(buffer: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, Callable[[], None]]:
        number = sum(event.startswith("copy") for event in events)
        events.append(f"copy {number}")
        return buffer.clone(), lambda: events.append(f"wait {number}")

    def unpinned(arrays: Mapping[str, Any], pinned: bool) -> PackedArrays:
        return pack(arrays, pinned=not pinned)

    monkeypatch.setattr(transfer, "start_copy", start_copy)
    monkeypatch.setattr(PackedArrays, "of", unpinned)
    batches = [replace(empty_batch(80, 4), window_frames=np.full(1, 2 * n)) for n in range(n_batches)]
    for number, tensors in enumerate(on_device(batches, torch.device("cuda"))):
        events.append(f"use {number}")
        assert tensors.keys() == arrays_of(batches[number]).keys()
        assert tensors["window_frames"].item() == 2 * number
    expected = {
        0: [],
        1: ["copy 0", "wait 0", "use 0"],
        3: ["copy 0", "copy 1", "wait 0", "use 0", "copy 2", "wait 1", "use 1", "wait 2", "use 2"],
    }
    assert events == expected[n_batches]
