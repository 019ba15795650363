import pytest
import torch
from small_run import with_objective
from tiny_run import record_as_labelled

from askd_ray import stages
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import to_json
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.train import ray_seeds, ray_trainer
from askd_ray.train.average import FACTORS, interpolated, mean_weights
from askd_ray.train.build import student_kind


@pytest.fixture
def recipe(copy_of_run) -> Recipe:
    """A recipe whose student is the average of two trainings."""
    made = with_objective(copy_of_run(), {}, train={"epochs": 1, "averaged_seeds": 2}).model_copy(update={"seed": 7})
    record_as_labelled(Run(made))
    return made


@pytest.mark.slow
def test_student_is_the_average_of_trainings_with_other_seeds(
    recipe: Recipe, ray_session: None, capsys: pytest.CaptureFixture[str]
):
    result = stages.distill(recipe)
    run = Run(recipe)
    assert result["students"] == ["seed-7", "seed-8"] and result["factor"] in FACTORS
    of_seeds = [run.path / "seeds" / name / "distill" / "best" for name in result["students"]]
    one, other = (load_whisper(str(folder))[0].state_dict() for folder in of_seeds)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    initial = student_kind(recipe).build(0).whisper.state_dict()
    expected = interpolated(mean_weights([one, other]), initial, result["factor"])
    for name, value in load_whisper(str(run.student))[0].state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert "the average of seed-7, seed-8" in (run.path / "report.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert stages.distill(recipe) == result
    assert "finished already" in capsys.readouterr().out


def test_finished_trainings_are_not_repeated(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    trained = list[int]()

    def distill(of_seed: Recipe, force: bool) -> None:
        run = Run(of_seed)
        assert of_seed.train.averaged_seeds == 1 and run.key("label")
        if run.record("distill") is None:
            trained.append(of_seed.seed)
            if trained == [7, 8]:
                raise AskdError("the second training dies once")
            kind = student_kind(of_seed)
            kind.save(kind.build(0), run.student)
            run.finish("distill", ray_trainer.distill_key(run), {"dev_wer": 0.5}, run.begin("distill"))

    monkeypatch.setattr(ray_seeds, "distill", distill)
    with pytest.raises(AskdError, match="dies once"):
        ray_seeds.distill_seeds(recipe)
    assert Run(recipe).record("distill") is None
    ray_seeds.distill_seeds(recipe)
    assert trained == [7, 8, 8]


def test_a_single_training_in_the_folder_is_not_replaced(recipe: Recipe):
    run = Run(recipe)
    run.distill.mkdir(parents=True)
    (run.path / "distill.json").write_text(to_json({"key": "other", "result": {}, "recipe": {}}), encoding="utf-8")
    with pytest.raises(AskdError, match="holds a student of other settings"):
        ray_seeds.distill_seeds(recipe)


def test_one_training_has_the_key_that_it_had(recipe: Recipe):
    alone = recipe.model_copy(update={"train": recipe.train.model_copy(update={"averaged_seeds": 1})})
    assert ray_trainer.distill_key(Run(alone)) == ray_trainer.distill_key(Run(recipe))


def test_a_study_has_seeds_of_its_own():
    study = {"against": "a", "arms": {"a": {}, "b": {"preset": "ce"}}}
    with pytest.raises(ValueError, match=r"averaged_seeds = 2 would be ignored: a study"):
        Recipe.model_validate({"study": study, "train": {"averaged_seeds": 2}})
