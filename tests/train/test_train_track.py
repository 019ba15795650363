import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from askd_ray.config.schema import Recipe
from askd_ray.mirror import Mirror
from askd_ray.runs import Run
from askd_ray.train.track import MetricsReader, Tracker, follow, read_metrics

STEPS = ({"loss": 1.5, "lr/decoder": 1e-5}, {"loss": 1.0, "lr/decoder": 2e-5}, {"loss": 0.5, "lr/decoder": 3e-5})


def tracked(folder: Path, first: int = 1, metrics: tuple[dict[str, float], ...] = STEPS) -> None:
    """Track steps from ``first`` on, like a run that resumed just before."""
    tracker = Tracker(folder, first - 1)
    for i, values in enumerate(metrics):
        tracker.log(first + i, values)
    tracker.close()


def board(folder: Path, name: str) -> list[tuple[int, float]]:
    """The steps and values in TensorBoard."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_resume_replaces_metrics_after_the_checkpoint(tmp_path: Path):
    tracked(tmp_path)
    time.sleep(1.0)  # TensorBoard orders its files by their start, in whole seconds
    tracked(tmp_path, 3, ({"loss": 0.25, "lr/decoder": 3e-5},))
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.5), (2, 1.0), (3, 0.25)]
    assert lines[0]["time_s"] <= lines[1]["time_s"] <= lines[2]["time_s"]
    assert board(tmp_path, "loss") == [(1, 1.5), (2, 1.0), (3, 0.25)]
    assert board(tmp_path, "lr/decoder")[1] == (2, pytest.approx(2e-5))


def test_restart_removes_all_metrics(tmp_path: Path):
    tracked(tmp_path)
    tracked(tmp_path, 1, STEPS[:1])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_reader_gets_every_step_once(tmp_path: Path):
    reader, late = MetricsReader(tmp_path), MetricsReader(tmp_path, after=2)
    assert reader.new() == []
    tracked(tmp_path)
    assert [line["step"] for line in reader.new()] == [1, 2, 3]
    assert reader.new() == []
    tracked(tmp_path, 2, (*STEPS, *STEPS))  # killed, and resumed from a checkpoint after the first step
    assert [line["step"] for line in reader.new()] == [4, 5, 6, 7]
    assert [line["step"] for line in late.new()] == [3, 4, 5, 6, 7]


def test_unfinished_line_is_read_later(tmp_path: Path):
    tracked(tmp_path, 1, STEPS[:1])
    reader = MetricsReader(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
        file.flush()
        assert [line["step"] for line in reader.new()] == [1]
        file.write('ss": 0.5}\n')
        file.flush()
        assert reader.new() == [{"step": 2, "loss": 0.5}]


def test_metrics_of_a_run_on_a_store_are_followed(
    s3: Callable[[str], str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(Recipe(name="mine", runs_root=s3("runs")))
    elsewhere = Mirror(tmp_path / "elsewhere", run.place / "distill")
    metrics = follow(run)
    assert metrics.new() == []
    tracked(elsewhere.folder)
    elsewhere.send("metrics.jsonl")
    assert metrics.new() == [], "it asks the store from time to time"
    for steps in ([1, 2, 3], []):
        monkeypatch.setattr(metrics, "_next_fetch_s", 0.0)
        assert [line["step"] for line in metrics.new()] == steps
    tracked(elsewhere.folder, 4)
    elsewhere.send("metrics.jsonl")
    monkeypatch.setattr(metrics, "_next_fetch_s", 0.0)
    assert [line["step"] for line in metrics.new()] == [4, 5, 6]
    assert not run.distill.exists(), "the training's own files stay as they are"
