"""A trial uses its candidate's values, also with another trial's checkpoint, and never sees the test split."""

import json
from pathlib import Path
from typing import Any

import pytest
from killed_run import killed, metrics_of

from askd_ray.config.candidate import with_values
from askd_ray.data.shards import read_utterances
from askd_ray.runs import Run
from askd_ray.search import ray_trial
from askd_ray.train.loop import Loop
from askd_ray.train.optim import lr_factor

FIRST = {"train.optimizer.lr": 1e-3, "train.optimizer.encoder_lr": 1e-3, "objective.self_teacher.weight": 0.1}
OTHER = {"train.optimizer.lr": 4e-3, "train.optimizer.encoder_lr": 2e-4, "objective.self_teacher.weight": 0.15}


class FakeTune:
    """The parts of Ray Tune that a trial calls, without a cluster."""

    def __init__(self, checkpoint: Path | None = None):
        self.checkpoint, self.reports = checkpoint, list[dict[str, Any]]()
        self.Checkpoint = self

    def get_context(self) -> "FakeTune":
        return self

    def get_trial_id(self) -> str:
        return "me"

    def get_checkpoint(self) -> "FakeTune | None":
        return self if self.checkpoint else None

    def as_directory(self) -> "FakeTune":
        return self

    def __enter__(self) -> Path | None:
        return self.checkpoint

    def __exit__(self, *_: object) -> None:
        pass

    def from_directory(self, folder: Path) -> Path:
        return folder

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        self.reports.append(metrics)


@pytest.fixture
def pbt(searched):
    """A recipe whose trials resume from one another's checkpoints."""
    settings = {"searcher": "random", "scheduler": "pbt", "space": {path: [value] for path, value in FIRST.items()}}
    recipe = searched(settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"evals_per_epoch": 2})})


def test_trial_resumed_from_another_checkpoint_uses_the_new_values(
    pbt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    donor = tmp_path / "donor"
    killed(with_values(pbt, FIRST), donor, dies_after=7)
    old = [line for line in metrics_of(donor) if "dev_wer" in line][-1]["step"]
    tune = FakeTune(donor)
    monkeypatch.setattr(ray_trial, "tune", tune)
    ray_trial.run_trial(pbt, OTHER, tmp_path / "search", "key")
    lines = metrics_of(tmp_path / "search" / "trials" / "me")
    ends = [line["progress"] for line in lines]
    for line, begins in zip(lines, [0.0, *ends], strict=False):
        values = FIRST if line["step"] <= old else OTHER
        factor = lr_factor(pbt.train.optimizer, begins, line["progress"])
        assert line["lr/decoder"] == pytest.approx(values["train.optimizer.lr"] * factor)
        assert line["lr/encoder"] == pytest.approx(values["train.optimizer.encoder_lr"] * factor)
        assert line["b"] == pytest.approx(values["objective.self_teacher.weight"] if begins >= 0.4 else 0.0)
    assert old < lines[-1]["step"] == 10
    assert [report["evaluations"] for report in tune.reports] == [
        3,
        4,
    ]  # the donor's evaluations are not reported again
    assert {json.dumps(OTHER)} == {report["values"] for report in tune.reports}


def test_interrupted_trial_resumes_and_reports_again(searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = searched({"space": {path: [value] for path, value in FIRST.items()}})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"evals_per_epoch": 2})})
    whole = FakeTune()
    monkeypatch.setattr(ray_trial, "tune", whole)
    ray_trial.run_trial(recipe, FIRST, tmp_path / "whole", "key")
    killed(with_values(recipe, FIRST), tmp_path / "search" / "trials" / "me", dies_after=7)
    tune = FakeTune()
    monkeypatch.setattr(ray_trial, "tune", tune)
    ray_trial.run_trial(recipe, FIRST, tmp_path / "search", "key")

    def scores(reports: list[dict[str, Any]]) -> list[tuple[float, int, int]]:
        return [(report["score"], report["step"], report["evaluations"]) for report in reports]

    assert [n for _, _, n in scores(whole.reports)] == [1, 2, 3, 4]
    assert scores(tune.reports) == scores(whole.reports)[-len(tune.reports) :]
    assert len(tune.reports) in (3, 4)  # the last one before the kill, and those after it
    tune.reports.clear()
    ray_trial.run_trial(recipe, FIRST, tmp_path / "search", "key")  # a finished trial
    assert scores(tune.reports) == scores(whole.reports)[-1:]


@pytest.mark.parametrize("shared", [True, False])
def test_trials_share_decoded_clips(shared: bool, searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_trial, "tune", FakeTune())
    ray_trial.run_trial(searched({}), {}, tmp_path / "search", "key", tmp_path / "search/features" if shared else None)
    files = [f"train-{n:05d}-of-00002.parquet.0.arrow" for n in range(2)] if shared else []
    assert sorted(path.name for path in tmp_path.glob("search/features/*")) == files


def test_trial_cannot_read_the_test_split(searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = searched({})
    monkeypatch.setattr(ray_trial, "tune", FakeTune())
    monkeypatch.setattr(Loop, "run", lambda loop: read_utterances(Run(loop.recipe).shards, "test"))
    with pytest.raises(PermissionError, match="the test split is not read here"):
        ray_trial.run_trial(recipe, {}, tmp_path, "key")
