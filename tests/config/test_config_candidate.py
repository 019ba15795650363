"""Candidates of a search are valid recipes, whatever their values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.config.candidate import check_space, grid, read_values, with_values
from askd_ray.config.objective import Objective
from askd_ray.config.schedules import ConstantWeight, weight_at
from askd_ray.config.schema import Recipe
from askd_ray.config.self_teacher import EmaConfig, SnapshotConfig
from askd_ray.config.tune import DEFAULT_SPACE, Between, Value
from askd_ray.config.variants import Variants
from askd_ray.objective.schedules import check

A, SELF_TEACHER = "objective.teacher_weight", "objective.self_teacher"
VARIANTS = {name: v for name, field in Objective.model_fields.items() if (v := Variants.of(field))}
SCHEDULES = list(VARIANTS["teacher_weight"].sections)
share = st.floats(0, 1)
anything = st.fixed_dictionaries(
    {
        f"{A}.schedule": st.sampled_from(SCHEDULES),
        f"{A}.start": share,
        f"{A}.end": share,
        f"{A}.sharpness": st.sampled_from([None, 3.0]),
        f"{A}.until": st.floats(0.1, 1),
        f"{SELF_TEACHER}.kind": st.sampled_from(["none", "snapshot", "ema", "previous_epoch", "best"]),
        f"{SELF_TEACHER}.weight": share,
        f"{SELF_TEACHER}.schedule": st.sampled_from(["constant", "linear", "cosine"]),
        f"{SELF_TEACHER}.switch": share,
        f"{SELF_TEACHER}.refresh": share,
        f"{SELF_TEACHER}.decay": share,
        f"{SELF_TEACHER}.top_k": st.integers(1, 128),
        "objective.instance_weights.kind": st.sampled_from(["uniform", "adakd"]),
        "objective.instance_weights.k_start": st.floats(-20, 20),
        "objective.trust_gate.kind": st.sampled_from(["none", "hard", "soft"]),
        "objective.trust_gate.power": st.floats(0.1, 2),
        "objective.divergence.kind": st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),
        "objective.divergence.beta": st.floats(0.1, 0.9),
        "train.optimizer.lr": st.floats(1e-6, 1),
    }
)


@settings(deadline=None)
@given(anything)
def test_every_candidate_is_a_valid_recipe(values: dict[str, Value]):
    recipe = with_values(Recipe(), values)
    check(recipe.objective, recipe.train.epochs)  # weights stay below 1
    assert recipe.objective.teacher_weight.schedule == values[f"{A}.schedule"]
    assert recipe.objective.teacher_weight.start == values[f"{A}.start"]
    optimizer = recipe.train.optimizer.model_copy(update={"lr": Recipe().train.optimizer.lr})
    rest = {"objective": Recipe().objective, "train": recipe.train.model_copy(update={"optimizer": optimizer})}
    assert recipe.model_copy(update=rest) == Recipe()  # nothing else is touched
    read = read_values(Recipe(), values)
    assert with_values(Recipe(), read) == recipe  # what it does not read does not matter


@settings(deadline=None)
@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0.5, 0.9), st.floats(0, 0.4), st.floats(0, 0.3))
def test_the_default_space_means_what_it_always_did(schedule: str, start: float, end: float, weight: float):
    values = dict(zip(DEFAULT_SPACE, (schedule, start, end, weight), strict=True))
    objective = with_values(Recipe(), values).objective
    a = objective.teacher_weight
    assert (a.schedule, a.start) == (schedule, start)
    assert a.schedule == "constant" or a.end == end
    assert objective.self_teacher.kind == "snapshot"
    assert objective.self_teacher.weight == min(weight, 1.0 - weight_at(a, Recipe().objective.self_teacher.switch))


def test_what_is_not_read_is_left_out():
    values: dict[str, Value] = {f"{A}.schedule": "constant", f"{A}.end": 0.3, f"{SELF_TEACHER}.kind": "ema"}
    values |= {f"{SELF_TEACHER}.decay": 0.9, f"{SELF_TEACHER}.refresh": 0.1}
    assert read_values(Recipe(), values) == {
        f"{A}.schedule": "constant",
        f"{SELF_TEACHER}.kind": "ema",
        f"{SELF_TEACHER}.decay": 0.9,
    }
    base = Recipe.model_validate({"objective": {"self_teacher": {"refresh": 0.2}, "teacher_weight": {"until": 0.7}}})
    objective = with_values(base, values).objective
    assert objective.self_teacher == EmaConfig(weight=1.0 - 0.8, decay=0.9)
    assert objective.teacher_weight == ConstantWeight(start=base.objective.teacher_weight.start)


def test_what_has_no_weight_is_left_out():
    values: dict[str, Value] = {f"{SELF_TEACHER}.weight": 0.0, f"{SELF_TEACHER}.switch": 0.3, f"{A}.start": 0.0}
    values["objective.trust_gate.kind"] = "hard"
    assert read_values(Recipe(), values) == {f"{SELF_TEACHER}.weight": 0.0, f"{A}.start": 0.0}
    values[f"{A}.start"] = 0.5
    assert read_values(Recipe(), values).keys() == values.keys() - {f"{SELF_TEACHER}.switch"}


def test_weights_are_cut_where_a_candidate_varies_them():
    read = read_values(Recipe(), {f"{A}.start": 0.9, f"{A}.end": 0.95, f"{SELF_TEACHER}.weight": 0.3})
    assert read == {f"{A}.start": 0.9, f"{A}.end": 0.9, f"{SELF_TEACHER}.weight": pytest.approx(0.1)}
    rising = Recipe.model_validate(
        {"objective": {"teacher_weight": {"start": 0.2, "end": 0.6}, "self_teacher": {"weight": 0.3}}}
    )
    assert with_values(rising, {"train.optimizer.lr": 1e-3}).objective == rising.objective
    self_teacher = with_values(rising, {f"{SELF_TEACHER}.weight": 0.9}).objective.self_teacher
    assert self_teacher == SnapshotConfig(weight=1.0 - 0.6)


def test_a_self_teacher_is_cut_only_where_it_has_a_weight():
    # a falls from 1, and b begins at 0.7
    window = Recipe.model_validate({"objective": {"preset": "askd_window"}, "targets": {"states": "all"}})
    values: dict[str, Value] = {f"{A}.end": 0.5, f"{SELF_TEACHER}.weight": 0.9}
    objective = with_values(window, values).objective
    check(objective, window.train.epochs)
    assert objective.teacher_weight.start == 1.0
    assert objective.self_teacher.weight == pytest.approx(1.0 - (0.5 + 0.5 * 0.3))  # a at 0.7
    check_space(Recipe.model_validate({**window.model_dump(), "tune": {"space": {f"{A}.end": [0.0, 0.2]}}}))


def test_a_grid_has_each_candidate_once():
    kinds = {f"{A}.schedule": ["constant", "linear"], f"{A}.end": [0.1, 0.2], "train.optimizer.lr": [1e-4, 1e-5]}
    recipe = Recipe.model_validate({"tune": {"searcher": "grid", "space": kinds}})
    assert len(grid(recipe)) == 6


@pytest.mark.parametrize("preset", ["askd", "askd_window"])
def test_the_default_space_is_fit_for_askd(preset: str):
    check_space(Recipe.model_validate({"objective": {"preset": preset}, "targets": {"states": "all"}}))
    assert isinstance(DEFAULT_SPACE[f"{A}.start"], Between)
