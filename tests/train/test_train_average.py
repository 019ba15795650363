from pathlib import Path

import pytest
import torch
from tiny_run import record_as_labelled

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.train.average import FACTORS, average, interpolated, mean_weights
from askd_ray.train.build import student_kind
from askd_ray.train.report import write_report


@pytest.fixture
def trained(copy_of_run, tmp_path: Path) -> list[Run]:
    """Two runs whose students are the untrained one plus noise, with the records of a training."""
    recipe = copy_of_run()
    record_as_labelled(Run(recipe))
    runs: list[Run] = []
    for seed in range(2):
        values = {**recipe.model_dump(mode="json"), "name": f"seed-{seed}", "data_run": recipe.name, "seed": seed}
        run = Run(Recipe.model_validate(values))
        kind = student_kind(run.recipe)
        student = kind.build(0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        kind.save(student, run.student)
        result = {"dev_wer": 0.5, "best_step": 1, "steps": 2, "params_m": 1.0}
        run.finish("distill", f"key{seed}", result, run.begin("distill"))
        runs.append(run)
    return runs


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_whisper(str(run.student))[0].state_dict()


def test_formulas():
    a, b = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, 5.0])}
    mean = mean_weights([a, b])
    assert mean["w"].tolist() == [2.0, 4.0]
    assert interpolated(mean, {"w": torch.tensor([0.0, 8.0])}, 0.25)["w"].tolist() == [1.5, 5.0]
    assert interpolated(mean, b, 0.0)["w"].tolist() == [2.0, 4.0]


def test_average_is_a_run_that_export_takes(trained: list[Run], capsys: pytest.CaptureFixture[str]):
    result = average([run.path for run in trained], "mean")
    mean_run = Run(trained[0].recipe.model_copy(update={"name": "mean"}))
    assert result["students"] == ["seed-0", "seed-1"]
    assert [row["factor"] for row in result["factors"]] == list(FACTORS)
    best = min(result["factors"], key=lambda row: row["dev_score"])
    assert result["factor"] == best["factor"] and result["dev_wer"] == best["dev_wer"]
    initial = student_kind(mean_run.recipe).build(0).whisper.state_dict()
    students = [weights_of(run) for run in trained]
    for name, value in weights_of(mean_run).items():
        mean = (students[0][name] + students[1][name]) / 2
        torch.testing.assert_close(value, torch.lerp(mean, initial[name], result["factor"]))
    assert mean_run.record("distill")["result"] == result
    assert write_report(mean_run) is not None
    assert "the average of seed-0, seed-1" in (mean_run.path / "report.md").read_text(encoding="utf-8")
    average([run.path for run in trained], "mean")
    assert "finished already" in capsys.readouterr().out


def test_other_students_are_refused(trained: list[Run]):
    with pytest.raises(AskdError, match="seed-0 is one of the averaged runs"):
        average([run.path for run in trained], "seed-0")
    with pytest.raises(AskdError, match="is no run"):
        average([trained[0].path.parent / "nothing"], "mean")
    other = trained[1].recipe.model_copy(
        update={"student": trained[1].recipe.student.model_copy(update={"decoder_layers": (0,)})}
    )
    Run(other).finish("distill", "key", {"dev_wer": 0.5}, Run(other).begin("distill"))
    with pytest.raises(AskdError, match="differ in student"):
        average([run.path for run in trained], "mean")
    assert not (trained[0].path.parent / "mean").exists()
