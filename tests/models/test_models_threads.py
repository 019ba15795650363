from pathlib import Path

import pytest

from askd_ray.models import threads
from askd_ray.models.bundle import read_bundle


@pytest.mark.parametrize(
    ("cores", "speedups", "expected"),
    [(2, [0.6], 1), (2, [1.6], 2), (8, [1.6, 1.4, 1.1], 4), (8, [2, 2, 2], 8), (6, [2, 2], 4), (1, [], 1)],
)
def test_threads_double_while_they_speed_up(
    cores: int, speedups: list[float], expected: int, monkeypatch: pytest.MonkeyPatch, weights: Path
):
    tried = iter(speedups)
    monkeypatch.setattr(threads, "_speedup", lambda *_: next(tried))
    assert threads.allocate_threads(read_bundle(weights), cores) == expected
    assert next(tried, None) is None


@pytest.mark.slow
def test_threads_are_chosen_by_timing(weights: Path):
    assert threads.allocate_threads(read_bundle(weights), 2) in (1, 2)
