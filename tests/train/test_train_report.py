import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from scored import evaluation

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.files import read_json, write_json
from askd_ray.runs import Run
from askd_ray.train.report import publish, write_report
from askd_ray.train.track import Tracker

PREPARED = {
    "read": 10,
    "utterances": {"train": 5, "dev": 2, "test": 1},
    "minutes": {"train": 3.25, "dev": 1.0, "test": 0.5},
    "quarantined": {"silence": 1, "empty text": 1},
    "without_text": 0,
}
LABELLED = {"utterances": 5, "labelled": 4, "left_out": {"repeats": 1}, "tokens": 99, "teacher_loss": 0.25}
DISTILLED: dict[str, object] = {"steps": 3, "dev_wer": 0.125, "best_step": 2, "params_m": 37.76, "workers": 1}
DISTILLED |= {"stopped": None, "padding": {"audio": 0.05, "tokens": 0.1}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished training, faked by its records and metrics."""
    recipe = load_recipe("demo", [f"runs_root={tmp_path}", "name=mine", "data.sources=[{path: calls, licence: own}]"])
    run = Run(recipe)
    for stage, result in (("prepare", PREPARED), ("label", LABELLED)):
        run.finish(stage, "key", result, run.begin(stage))
    trained(run)
    return run


def trained(run: Run, **more: Any) -> None:
    tracker = Tracker(run.distill, 0)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1 / step, "a": 0.5, "b": 0.0, "dev_wer": 0.25 / step})
    tracker.close()
    run.finish("distill", "key", {**DISTILLED, **more}, run.begin("distill"))


def report(run: Run) -> str:
    path = write_report(run)
    assert path == run.path / "report.md"
    return path.read_text()


def test_report_describes_the_training(run: Run):
    text = report(run)
    assert "**Dev WER 12.50 %** at step 2 of 3" in text
    assert "`askd_window`: (1 - a - b) CE" in text and "| a, the teacher's weight | linear from" in text
    assert "| teacher | `wheel:tiny.en`" in text and "37.76 M parameters" in text
    assert "- `calls` (manifest, en, default; licence: own)" in text
    for row in ("train | 5 | 3.2", "test | 1 | 0.5", "silence | 1", "repeats | 1"):
        assert f"| {row} |" in text
    assert "Of 10 rows read, 2 were set aside" in text
    assert "5 train utterances: 4 of them trained on, 99 target tokens" in text
    record = read_json(run.path / "distill.json")
    assert f"`{record['git_sha']}`" in text and f"torch {record['versions']['torch']}" in text
    assert "Held-out" not in text and "Bundle" not in text and "Utterances in training" not in text


def test_report_links_and_pictures_exist(run: Run):
    targets = re.findall(r"\]\(([^)]+)\)", report(run))
    assert "report/losses.png" in targets and "report/dev_wer.png" in targets
    assert [target for target in targets if not (run.path / target).exists()] == []


def test_report_shows_the_trained_recipe(run: Run):
    later = Run(
        load_recipe("demo", [*(f"runs_root={run.path.parent}", "name=mine"), "train.optimizer.lr=0.5", "seed=77"])
    )
    later.begin("export")  # as `askd export` with other settings does
    text = report(later)
    assert "seed | 77" not in text and "0.5, encoder" not in text
    assert (run.path / "report" / "recipe.yaml").read_text() == dump_recipe(run.recipe)


def test_report_accounts_for_every_utterance(run: Run):
    trained(run, utterances={"seen": 4, "left_out": {"repeats": 1, "damaged": 2}})
    text = report(run)
    assert "## Utterances in training" in text
    for row in ("seen | 4", "left out: repeats | 1", "left out: damaged | 2"):
        assert f"| {row} |" in text


def test_report_shows_the_windows_that_the_export_compared(run: Run):
    one = {"silence_s": 0.2, "min_s": 1.0, "window_s": 1.84, "decoding_ms": 21.3, "wer": 0.05, "runaways": 0}
    one |= {"above_best": 0.01, "standard_error": 0.0125}
    scores = [one, {**one, "silence_s": 0.6, "window_s": 2.24, "wer": 0.04, "above_best": 0.0, "standard_error": 0.0}]
    sweep = {"clips": 120, "words": 900, "scores": scores, "chosen": 0}
    run.finish("export", "key", {"size_mb": {}, "window_sweep": sweep}, run.begin("export"))
    text = report(run)
    assert "| **clip + 0.2 s** | 1 s | 1.84 s | 21 ms | 5.00 | 1.00 (1.25) | 0 |" in text
    assert "| clip + 0.6 s | 1 s | 2.24 s | 21 ms | 4.00 | 0.00 (0.00) | 0 |" in text
    assert "120 dev clips (900 words)" in text
    assert (run.path / "report" / "windows.png").stat().st_size > 5000


def test_report_adds_later_stages_of_the_same_training(run: Run):
    run.finish("export", "key", {"size_mb": {"ctranslate2-int8": 39.5}}, run.begin("export"))
    run.finish("evaluate", "key", evaluation(), run.begin("evaluate"))
    run.bundle.mkdir()
    text = report(run)
    assert "| `ctranslate2-int8` | 39.5 |" in text and "| test | in | 3 | 20.00 (" in text
    assert "| student | served | 10.00 (" in text
    assert "student: 9.83x (95 %: 9.10 to 10.40) as fast as teacher on the median of 3 clips." in text
    now = (run.path / "evaluate.json").stat().st_mtime + 1
    os.utime(run.path / "distill.json", (now, now))
    text = report(run)
    assert "ctranslate2-int8" not in text and "Held-out" not in text


def test_report_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = report(run)
    assert "## Curves\n\nNone: plots need matplotlib, which is not installed: pip install 'askd-ray[plot]'" in text
    assert "**Dev WER 12.50 %**" in text


def test_report_needs_a_finished_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    publish(Recipe(name="mine", runs_root=str(tmp_path)))
    assert capsys.readouterr().out == "" and not (tmp_path / "mine").exists()


def test_report_of_another_version(run: Run, capsys: pytest.CaptureFixture[str]):
    record = read_json(run.path / "distill.json")
    record["recipe"]["train"]["gone"] = 1
    write_json(run.path / "distill.json", record)
    publish(run.recipe)
    assert "no report: " in capsys.readouterr().out and not (run.path / "report.md").exists()


def test_mlflow_gets_the_best_student(run: Run, monkeypatch: pytest.MonkeyPatch):
    sent: list[set[str]] = []
    monkeypatch.setattr("askd_ray.train.report.send_finished_run", lambda run, files: sent.append(set(files)))
    for path in (run.student / "config.json", run.bundle / "transformers" / "config.json", run.bundle / "README.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    publish(run.recipe)
    run.finish("export", "key", {"size_mb": {}}, run.begin("export"))
    publish(run.recipe)
    always = {"report.md", "recipe.yaml", "report/losses.png", "report/dev_wer.png", "report/schedule.png"}
    always.add("bundle/transformers/config.json")
    assert sent == [always, always | {"bundle/README.md"}]
