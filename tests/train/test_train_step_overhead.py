"""What a step costs on a GPU besides arithmetic, counted on the CPU."""

from pathlib import Path

import pytest
import torch
from step_overhead import (
    Calls,
    CountedMethods,
    CountedOperators,
    bytes_per_audio_s,
    count_step,
    make_batches,
    make_stepper,
)

MAX_LAUNCHES, MAX_LOG_MEL_LAUNCHES = 900, 60
MAX_BYTES_PER_AUDIO_S = 40_000  # 16-bit samples are 32,000


@pytest.mark.slow
def test_a_step_launches_few_kernels_and_waits_once(tmp_path: Path):
    batches, stepper = make_batches(tmp_path, 2), make_stepper()
    host, device, two = (
        count_step(stepper, step) for step in ([batches["host"]], [batches["device"]], [batches["device"]] * 2)
    )
    assert 500 < host.launches.total() <= MAX_LAUNCHES
    assert device.launches.total() - host.launches.total() <= MAX_LOG_MEL_LAUNCHES
    for calls in (host, device, two):
        assert calls.syncs == {"tolist": 1}
    # A second micro-batch casts no weight again.
    assert two.launches["aten::_to_copy"] < 1.8 * device.launches["aten::_to_copy"]
    assert bytes_per_audio_s(batches["device"]) <= MAX_BYTES_PER_AUDIO_S


def test_every_wait_is_counted():
    calls, values = Calls(), torch.arange(4.0)
    with CountedMethods(calls), CountedOperators(calls):
        mask = values > 1.0
        assert values[mask].tolist() == [2.0, 3.0]
        values[mask] = 0.0
        assert values.sum().item() == 1.0 and bool(mask.any()) and float(values[1]) == 1.0
        mask.nonzero()
        values.cpu().numpy()
        torch.masked_select(values, mask)
    assert calls.syncs == {
        "aten::index": 1,
        "aten::index_put_": 1,
        "tolist": 1,
        "aten::_local_scalar_dense": 3,
        "aten::nonzero": 1,
        "cpu": 1,
        "numpy": 1,
        "aten::masked_select": 1,
    }


def test_views_are_no_launches():
    calls, values = Calls(), torch.arange(4.0)
    with CountedOperators(calls):
        values.view(2, 2).t()[:1].detach()
        torch.empty(3)
        values.mul(2.0).add_(1.0)
    assert calls.launches == {"aten::mul": 1, "aten::add_": 1}
