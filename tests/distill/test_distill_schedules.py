import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.schema import Objective, SelfTeacher, TeacherWeight
from askd_ray.distill.schedules import SHAPES, check, self_weight, teacher_weight, weights_at
from askd_ray.errors import AskdError


@pytest.mark.parametrize("schedule", sorted(set(SHAPES) - {"constant"}))
def test_shapes_go_from_start_to_end(schedule: str):
    settings = TeacherWeight(schedule=schedule, start=0.8, end=0.16, until=0.5)  # type: ignore[arg-type]
    assert teacher_weight(settings, 0.0) == pytest.approx(0.8)
    assert teacher_weight(settings, 0.5) == pytest.approx(0.16)
    assert teacher_weight(settings, 1.0) == pytest.approx(0.16)


def test_values_half_way():
    middle = {s: teacher_weight(TeacherWeight(schedule=s, start=1.0, end=0.0), 0.5) for s in SHAPES}  # type: ignore[arg-type]
    assert middle == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5, "exponential": 0.0758582}, abs=1e-6)


@given(st.sampled_from(sorted(SHAPES)), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_the_weight_falls_and_stays_between_its_ends(schedule: str, u: float, start: float, end: float, until: float):
    start, end = max(start, end), min(start, end)
    settings = TeacherWeight(schedule=schedule, start=start, end=end, until=until)  # type: ignore[arg-type]
    assert end - 1e-9 <= teacher_weight(settings, u) <= start + 1e-9
    assert teacher_weight(settings, u) >= teacher_weight(settings, min(1.0, u + 0.1)) - 1e-9


def test_self_weight_waits_for_the_switch():
    settings = SelfTeacher(kind="snapshot", weight=0.2, switch=0.5)
    assert [self_weight(settings, u) for u in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 0.2, 0.2]
    assert self_weight(SelfTeacher(kind="none", weight=0.2, switch=0.0), 1.0) == 0.0


def test_weights_that_exceed_one_are_refused_with_the_place():
    early = Objective(
        teacher_weight=TeacherWeight(start=0.9, end=0.5), self_teacher=SelfTeacher(weight=0.3, switch=0.0)
    )
    with pytest.raises(AskdError, match=r"exceed 1 at progress 0\.00"):
        check(early)
    late = early.model_copy(update={"self_teacher": SelfTeacher(weight=0.3, switch=0.6)})
    check(late)
    a, b = weights_at(late, 0.6)
    assert a + b <= 1.0
