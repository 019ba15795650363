"""The search space of a recipe: what may vary, and what its values may be."""

from pathlib import Path

import pytest
import yaml

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import DEFAULT_SPACE, Between, is_integer, searchable
from askd_ray.errors import AskdError


def load(tmp_path: Path, tune: object, **sections: object) -> Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"tune": tune, **sections}))
    return load_recipe(str(file))


def test_the_paths_are_numbers_and_names_of_the_objective_and_the_learning_rates():
    paths = set(searchable())
    expected = {
        "train.optimizer.lr",
        "train.optimizer.encoder_lr",
        "objective.teacher_weight.until",
        "objective.self_teacher.switch",
    }
    assert expected | {"objective.ce_weight", "objective.divergence.t_squared", *DEFAULT_SPACE} <= paths
    assert not {path for path in paths if path.partition(".")[0] not in ("objective", "train")}
    assert not paths & {"objective.preset", "objective.hidden_states.layers", "train.epochs", "objective.divergence"}
    assert [path for path in paths if is_integer(path)] == ["objective.self_teacher.top_k"]


def test_a_space_comes_back_as_it_was_read(tmp_path: Path):
    space = {
        "objective.teacher_weight.schedule": ["linear", "gap"],
        "objective.teacher_weight.sharpness": [None, 3],
        "objective.divergence.t_squared": [True, False],
        "train.optimizer.lr": {"low": "1e-5", "high": "2e-4", "log": True},  # YAML 1.1 reads 1e-5 as text
        "train.optimizer.encoder_lr": ["1e-5", 3e-5],
        "objective.self_teacher.top_k": {"low": 8, "high": 64},
        "objective.self_teacher.kind": ["previous_epoch", "none"],
        "objective.teacher_weight.until": [0.5, 1],
    }
    space["objective.teacher_weight.schedule"].append("sigmoid")
    recipe = load(tmp_path, {"space": space})
    assert recipe.tune.space["train.optimizer.lr"] == Between(low=1e-5, high=2e-4, log=True)
    assert recipe.tune.space["train.optimizer.encoder_lr"] == (1e-5, 3e-5)
    assert recipe.tune.space["objective.divergence.t_squared"] == (True, False)
    assert recipe.tune.space["objective.teacher_weight.sharpness"] == (None, 3.0)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


KIND = "objective.self_teacher.kind"
WRONG = {
    "an empty space": ({"space": {}}, "tune.space: space maps paths"),
    "an unknown path": ({"space": {"objective.self_teacher.knd": [1]}}, f"did you mean '{KIND}'?"),
    "the data": (
        {"space": {"data.dev_share": [0.1]}},
        "data.dev_share cannot be searched: only the fields of objective",
    ),
    "the teacher": ({"space": {"teacher.model": ["wheel:base"]}}, "teacher.model cannot be searched"),
    "what it is judged by": ({"space": {"evaluate.normalizer": ["none"]}}, "evaluate.normalizer cannot be searched"),
    "the preset": ({"space": {"objective.preset": ["ce"]}}, "objective.preset cannot be searched"),
    "a list of layers": ({"space": {"objective.hidden_states.layers": [[[0, 0]]]}}, "layers cannot be searched"),
    "a name that is none": ({"space": {KIND: ["emma"]}}, f"{KIND} = 'emma': Input should be 'none', 'snapshot'"),
    "a value out of bounds": (
        {"space": {"train.optimizer.lr": [0]}},
        "train.optimizer.lr = 0: Input should be greater than 0",
    ),
    "an end out of bounds": (
        {"space": {"objective.self_teacher.switch": {"low": 0, "high": 1.5}}},
        "objective.self_teacher.switch = 1.5: Input should be less than or equal to 1",
    ),
    "a range of names": ({"space": {KIND: {"low": 0, "high": 1}}}, f"{KIND} = 0.0: Input should be"),
    "a range of flags": ({"space": {"objective.divergence.t_squared": {"low": 0, "high": 1}}}, "is not a number"),
    "ends in the wrong order": (
        {"space": {"train.optimizer.lr": {"low": 2, "high": 1}}},
        "low = 2 must be below high = 1",
    ),
    "a logarithm of nothing": (
        {"space": {"objective.self_teacher.switch": {"low": 0, "high": 1, "log": True}}},
        "with log it must be above 0",
    ),
    "a range without an end": (
        {"space": {"train.optimizer.lr": {"low": 1}}},
        "train.optimizer.lr.high: Field required",
    ),
    "a value twice": ({"space": {"train.optimizer.lr": [1e-4, "1e-4", 0.0001]}}, "each value may appear once"),
    "no list": (
        {"space": {"train.optimizer.lr": 1e-4}},
        "train.optimizer.lr = 0.0001: give a list of values, or {low: ..., high: ...",
    ),
    "a grid of ranges": (
        {"searcher": "grid", "space": {"train.optimizer.lr": {"low": 1e-5, "high": 1e-4}}},
        "searcher grid tries lists of values, and train.optimizer.lr is a range",
    ),
    "a number of trials of a grid": ({"searcher": "grid", "trials": 5}, "trials = 5 would be ignored"),
    "two that find values": ({"scheduler": "pbt"}, "searcher must be random, not tpe"),
    "another state on the way": (
        {"scheduler": "pbt", "searcher": "random", "space": {KIND: ["ema", "best"]}},
        f"scheduler pbt continues from checkpoints, and {KIND} decides their contents",
    ),
    "nothing on the way": ({"scheduler": "pbt", "searcher": "random", "epochs": 0.5}, "2 evaluations of each"),
    "a weight of nothing": ({"ood_weight": 0.3}, "ood_weight = 0.3 would be ignored: ood_domains is empty"),
    "checkpoints between trials of several workers": (
        {"scheduler": "pbt", "searcher": "random", "trial_workers": 2},
        "trial_workers must be 1, not 2",
    ),
    "more workers than micro-batches": (
        {"trial_workers": 3},
        "tune.trial_workers = 3 exceeds the 1 micro-batches of a step",
    ),
    "GPUs of a trial of several workers": (
        {"trial_workers": 2, "gpus_per_trial": 0.5},
        "gpus_per_trial = 0.5 would be ignored: each of 2 workers",
    ),
    "a negative limit": ({"max_features_gb": -1.0}, "greater than or equal to 0"),
    "what is called otherwise": ({"share_features": False}, "tune.max_features_gb limits what trials share"),
    "GPUs that are not used": (
        {"gpus_per_trial": 0.5},
        "gpus_per_trial = 0.5 would be ignored: train.workers.gpu",
    ),
    "one temperature, baked in": (
        {"space": {"objective.temperature.start": [1, 2]}},
        "soft labels are computed with one temperature",
    ),
    "what no candidate reads": (
        {"space": {"objective.self_teacher.decay": [0.9, 0.99], "train.optimizer.lr": [1e-4]}},
        "no candidate would read objective.self_teacher.decay",
    ),
    "what the teacher cannot give": (
        {"space": {"objective.hidden_states.kind": ["none", "mse"]}},
        "with objective.hidden_states.kind = 'mse', objective.hidden_states needs the teacher beside the student",
    ),
}


@pytest.mark.parametrize(("tune", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, tune: object, message: str):
    with pytest.raises(AskdError) as raised:
        load(tmp_path, tune)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_preset_holds_is_not_searched(tmp_path: Path):
    with pytest.raises(AskdError, match=r"train\.lr|self_teacher\.kind = 'ema': preset pskd fixes it at"):
        load(tmp_path, {"space": {KIND: ["previous_epoch", "ema"]}}, objective={"preset": "pskd"})
    assert load(tmp_path, {}, objective={"preset": "pskd"}).tune.space == DEFAULT_SPACE  # until it is searched


def test_paths_that_do_not_go_together_are_found(tmp_path: Path):
    space = {"objective.self_teacher.kind": ["snapshot", "previous_epoch"]}
    assert load(tmp_path, {"space": space})
    space["objective.temperature.schedule"] = ["constant", "linear"]
    with pytest.raises(AskdError, match="some of its paths cannot be combined: objective: temperature"):
        load(tmp_path, {"space": space}, teacher={"online": True})


def test_no_domain_is_both_chosen_by_and_tested_on(tmp_path: Path):
    sets = [{"name": "far", "path": "far.jsonl", "domain": "calls"}]
    assert load(tmp_path, {"ood_domains": ["radio"]}, evaluate={"sets": sets})
    for domain in ("calls", "far"):
        with pytest.raises(AskdError, match=f"tune.ood_domains and evaluate.sets both name {domain}"):
            load(tmp_path, {"ood_domains": ["radio", domain]}, evaluate={"sets": sets})
