import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.objective.transfer import PackedArrays

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
