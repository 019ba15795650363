import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.objective import Objective
from askd_ray.config.schedules import (
    SHAPES,
    SHARPNESS,
    ConstantWeight,
    FallingWeight,
    TeacherWeight,
    temperature_at,
    weight_at,
)
from askd_ray.config.self_teacher import EmaConfig, NoSelfTeacher, SnapshotConfig
from askd_ray.config.variants import Variants
from askd_ray.errors import AskdError
from askd_ray.objective.schedules import Gap, Progress, check, self_weight, weights_at

FALLING = sorted(SHAPES)


def falling(**settings: Any) -> TeacherWeight:
    return Objective.model_validate({"teacher_weight": settings}).teacher_weight


def at(u: float, epochs: float = 4.0) -> Progress:
    return Progress.at(u, epochs)


def test_every_shape_that_a_recipe_can_name_is_there():
    variants = Variants.of(Objective.model_fields["teacher_weight"])
    assert variants is not None and variants.sections.keys() == {*SHAPES, "constant", "gap"}
    assert variants.readers("sharpness") == list(SHARPNESS)


@pytest.mark.parametrize("schedule", FALLING)
def test_shapes_go_from_start_to_end(schedule: str):
    settings = falling(schedule=schedule, start=0.8, end=0.16, until=0.5)
    assert weight_at(settings, 0.0) == pytest.approx(0.8)
    assert weight_at(settings, 0.5) == pytest.approx(0.16)
    assert weight_at(settings, 1.0) == pytest.approx(0.16)


def test_values_a_third_of_the_way():
    low, third, high = (1.0 / (1.0 + math.exp(10.0 * (v - 0.5))) for v in (0.0, 1 / 3, 1.0))  # the logistic function
    found = {s: weight_at(falling(schedule=s, start=1.0, end=0.0), 1 / 3) for s in FALLING}
    by_hand = {
        "linear": 2 / 3,
        "cosine": 0.75,
        "exponential": 0.1833732,  # (e^(-5/3) - e^-5) / (1 - e^-5)
        "polynomial": 4 / 9,
        "step": 0.75,  # the second of four steps
        "sigmoid": (third - high) / (low - high),
    }
    assert found == pytest.approx(by_hand, abs=1e-6)


def test_sharpness_is_rate_power_steps_or_steepness():
    values = {
        ("polynomial", 1.0): 0.5,
        ("polynomial", 3.0): 0.125,
        ("step", 2.0): 0.5,
        ("step", 10.0): 0.5,
        ("sigmoid", 40.0): 0.5,
    }
    for (schedule, sharpness), expected in values.items():
        settings = falling(schedule=schedule, start=1.0, end=0.0, sharpness=sharpness)
        assert weight_at(settings, 0.5) == pytest.approx(expected)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.floats(0.1, 30),
)
def test_the_weight_falls_and_stays_between_its_ends(
    schedule: str, u: float, start: float, end: float, until: float, sharpness: float
):
    start, end = max(start, end), min(start, end)
    sharp = {"sharpness": sharpness} if schedule in SHARPNESS else {}
    settings = falling(schedule=schedule, start=start, end=end, until=until, **sharp)
    assert end - 1e-9 <= weight_at(settings, u) <= start + 1e-9
    assert weight_at(settings, u) >= weight_at(settings, min(1.0, u + 0.1)) - 1e-9


def test_a_constant_weight_is_exact():
    assert weight_at(ConstantWeight(start=0.7), 0.9) == 0.7


def test_self_weight_waits_for_the_switch():
    settings = SnapshotConfig(weight=0.2, switch=0.5)
    assert [self_weight(settings, at(u)) for u in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 0.2, 0.2]
    assert self_weight(NoSelfTeacher(), at(1.0)) == 0.0


def test_self_weight_rises_from_the_switch():
    linear = EmaConfig(weight=0.4, switch=0.5, schedule="linear")
    assert [self_weight(linear, at(u)) for u in (0.4, 0.5, 0.75, 1.0)] == pytest.approx([0.0, 0.0, 0.2, 0.4])
    cosine = EmaConfig(weight=0.4, switch=0.0, schedule="cosine")
    assert [self_weight(cosine, at(u)) for u in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.0585786, 0.2, 0.4])


def test_ps_kd_s_weight_follows_the_epochs():
    """a_t = a_T (epoch + 1) / epochs, a_T = 0.8 (arXiv 2006.12000)."""
    pskd = Objective(preset="pskd").self_teacher
    weights = [self_weight(pskd, Progress(u, epoch, 4)) for epoch, u in enumerate((0.0, 0.3, 0.55, 0.9))]
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8])


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 1), st.floats(0.5, 4), st.floats(0.5, 4))
def test_the_temperature_stays_between_its_ends(schedule: str, u: float, start: float, end: float):
    values = {"schedule": schedule, "start": start} | ({} if schedule == "constant" else {"end": end})
    settings = Objective.model_validate({"temperature": values}).temperature
    assert temperature_at(settings, 0.0) == pytest.approx(start)
    if schedule != "constant":
        assert temperature_at(settings, 1.0) == pytest.approx(end)
        assert min(start, end) - 1e-9 <= temperature_at(settings, u) <= max(start, end) + 1e-9


@given(st.floats(0, 1), st.floats(0.1, 9.5))
def test_progress_lies_in_an_epoch_of_the_run(u: float, epochs: float):
    progress = Progress.at(u, epochs)
    assert 0 <= progress.epoch < progress.n_epochs


def test_weights_that_exceed_one_are_refused_with_the_place():
    early = Objective(
        teacher_weight=FallingWeight(start=0.9, end=0.5), self_teacher=SnapshotConfig(weight=0.3, switch=0.0)
    )
    with pytest.raises(AskdError, match=r"exceed 1 at progress 0\.00"):
        check(early, 2.0)
    late = early.model_copy(update={"self_teacher": SnapshotConfig(weight=0.3, switch=0.6)})
    check(late, 2.0)
    weights = weights_at(late, at(0.6))
    assert weights.teacher_weight + weights.self_weight <= 1.0


def test_the_gap_falls_with_the_student_s_distance_and_never_rises():
    gap, values = Gap(), []
    for loss in [3.0] * Gap.FIRST_STEPS + [2.0] * 300 + [3.0] * 50 + [0.5] * 300:
        gap.update(loss, 1.0)
        values.append(gap.value)
    assert values[Gap.FIRST_STEPS - 1] == 1.0
    assert values[Gap.FIRST_STEPS + 299] == pytest.approx(0.5, abs=0.02)  # half the initial gap
    assert all(later <= earlier for earlier, later in pairwise(values))
    assert values[-1] == 0.0  # the student is better than its teacher


def test_a_student_that_is_not_behind_needs_no_teacher():
    gap = Gap()
    for _ in range(Gap.FIRST_STEPS + 1):
        gap.update(0.5, 1.0)
    assert gap.value == 0.0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=60), st.integers(0, 60))
def test_a_gap_goes_on_where_its_state_was_kept(losses: list[tuple[float, float]], kept_after: int):
    whole, first = Gap(), Gap()
    for pair in losses[:kept_after]:
        first.update(*pair)
    resumed = Gap(**first.state())
    for pair in losses:
        whole.update(*pair)
    for pair in losses[kept_after:]:
        resumed.update(*pair)
    assert resumed == whole and 0.0 <= whole.value <= 1.0
