import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from askd_ray.config.schema import Recipe
from askd_ray.train.curves import draw_curves, points
from askd_ray.train.plot import smooth


def line(step: int, n_steps: int = 40, **more: float) -> dict[str, float]:
    u = step / n_steps
    losses = {"loss": 2 - u, "ce": 3 - 2 * u, "kd": 1 - u / 2, "self_kd": 0.1 if u > 0.5 else 0.0}
    weights = {"a": 0.8 * (1 - u), "b": 0.2 if u > 0.5 else 0.0, "T": 2 - u, "k": 0.0}
    rates = {"lr/encoder": 1e-5 * (1 - u), "lr/decoder": 5e-5 * (1 - u)}
    return {"step": step, "progress": u, "grad_norm": 50.0 / step, **losses, **weights, **rates, **more}


def training() -> list[dict[str, float]]:
    scored = {"dev_wer": 0.3, "utterances_per_s": 4.0}
    return [line(step, **(scored if step % 10 == 0 else {})) for step in range(1, 41)]


def test_every_metric_is_drawn(tmp_path: Path):
    drawn = draw_curves(training(), Recipe(), tmp_path)
    names = ["losses", "dev_wer", "schedule", "learning_rates", "grad_norm", "utterances_per_s"]
    assert [path.name for path in drawn] == [f"{name}.png" for name in names]
    for path in drawn:
        assert len(Image.open(path).convert("RGB").getcolors(1 << 20) or []) > 10, path


def test_unmeasured_metrics_are_left_out(tmp_path: Path):
    lines = [{"step": 1, "loss": 1.0, "a": 0.5, "b": 0.0}, {"step": 2, "loss": 0.5, "a": 0.4, "b": 0.0}]
    assert [path.stem for path in draw_curves(lines, Recipe(), tmp_path)] == ["losses", "schedule"]


def test_varying_schedule_has_a_separate_row(tmp_path: Path):
    constant: list[dict[str, Any]] = [{**values, "T": 1.0} for values in training()]
    heights = [Image.open(draw_curves(lines, Recipe(), tmp_path)[2]).height for lines in (constant, training())]
    assert heights[1] > 1.3 * heights[0]


def test_points_are_at_measured_steps():
    lines = [{"step": 1, "x": 3.0}, {"step": 2}, {"step": 3, "x": math.nan}, {"step": 4, "x": 1.0}]
    assert points(lines, "x") == ([1.0, 4.0], [3.0, 1.0])
    assert points(lines, "y") == ([], [])


def test_long_run_is_drawn_as_means():
    steps, values = points([{"step": step, "x": step % 2} for step in range(1, 100_001)], "x")
    assert len(steps) <= 600 and steps == sorted(steps)
    assert values[:-1] == [pytest.approx(0.5, abs=0.01)] * (len(values) - 1)


def test_running_mean_starts_at_the_values():
    assert smooth([4.0, 2.0])[0] == pytest.approx(4.0)
    assert smooth([4.0, 2.0])[1] == pytest.approx((0.9 * 4 + 2) / 1.9)
    assert smooth([3.0] * 50) == [pytest.approx(3.0)] * 50
