from pathlib import Path

import pytest
from small_run import utterances

from askd_ray.config.evaluate import Evaluate
from askd_ray.evaluation.speed import _cost, measure_speed
from askd_ray.files import write_json
from askd_ray.models.bundle import read_bundle
from askd_ray.runs import Run


@pytest.mark.slow
def test_a_trimmed_and_a_padded_model_side_by_side(tmp_path: Path, speech: Path, weights: Path):
    (tmp_path / "ctranslate2-int8").symlink_to(weights)
    (tmp_path / "transformers").symlink_to(weights)
    write_json(tmp_path / "bundle.json", {"name": "b", "window": {"silence_s": 0.3, "min_s": 1.0}})
    clips = utterances(speech, 6)
    settings = Evaluate(stock=False, speed_clips=4, batch_sizes=(1, 4), short_s=60.0)
    found = measure_speed({"student": str(tmp_path), "teacher": str(weights)}, "teacher", clips, settings)
    assert found["clips"] == 4 and found["speedup_against"] == "teacher" and [*found["speedup"]] == ["student"]
    student, teacher = found["models"]["student"], found["models"]["teacher"]
    assert student["params_m"] == teacher["params_m"] == pytest.approx(37.76, abs=0.01)
    assert student["multiply_adds_g"] < teacher["multiply_adds_g"] / 3
    assert (student["window"], teacher["window"]) == ("clip + 0.3 s, at least 1 s", "30 s")
    for model in (student, teacher):
        assert [*model["throughput"]] == ["1", "4"] and min(model["throughput"].values()) > 0.0
        assert model["p50_ms"] <= model["p95_ms"] <= model["p99_ms"] and model["first_call_ms"] > 0.0
        assert sum(bucket["clips"] for bucket in model["by_duration"]) == 4
        assert 50 < model["memory_mb"] < 5000 and model["open_s"] > 0.0
    assert found["speedup"]["student"]["short"]["clips"] == 4
    assert found["speedup"]["student"]["all"]["value"] == found["speedup"]["student"]["short"]["value"]
    assert found["hardware"]["threads"] >= 1 and found["hardware"]["cpu"] and "torch" in found["versions"]


@pytest.mark.slow
def test_cost_of_a_ctc_student(ctc_run: Run):
    cost = _cost(str(ctc_run.bundle))
    assert cost.get("params_m") == pytest.approx(8.2 + 0.26, abs=0.05)
    assert 0.0 < cost.get("multiply_adds_g", 0.0) < 3.0
    assert cost.get("window") == str(read_bundle(ctc_run.bundle).window)
