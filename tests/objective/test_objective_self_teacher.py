from pathlib import Path
from typing import Any

import pytest
from torch import nn

from askd_ray.config.objective import Objective
from askd_ray.objective.schedules import Progress
from askd_ray.objective.self_teacher import build_self_teacher


class Student(nn.Linear):
    """A stand-in for the student: copies only need weights."""

    shrunk = 0

    def __init__(self, value: float = 0.0):
        super().__init__(1, 1, bias=False)
        nn.init.constant_(self.weight, value)


def at(u: float) -> Progress:
    return Progress.at(u, 4.0)


def held(self_teacher: Any) -> float | None:
    return None if self_teacher.model is None else self_teacher.model.weight.item()


def make(best: Student | None = None, **settings: Any) -> Any:
    config = Objective.model_validate({"self_teacher": settings}).self_teacher
    return build_self_teacher(config, lambda: best, Path("nowhere"))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("kind", ["snapshot", "ema", "best", "previous_epoch"])
def test_nothing_is_held_before_the_switch_or_without_weight(kind: str):
    for settings, u in (({"switch": 0.5}, 0.4), ({"weight": 0.0}, 0.9)):
        self_teacher = make(Student(), kind=kind, **settings)
        self_teacher.before_step(Student(), at(u))
        self_teacher.after_evaluation(Student(), better=True)
        tensors, _ = self_teacher.state()
        assert tensors == {}


def test_the_snapshot_is_taken_once_and_does_not_follow_the_student():
    student, self_teacher = Student(1.0), make(switch=0.5)
    self_teacher.before_step(student, at(0.5))
    nn.init.constant_(student.weight, 2.0)
    self_teacher.before_step(student, at(0.9))
    assert held(self_teacher) == 1.0
    assert not any(p.requires_grad for p in self_teacher.model.parameters())


def test_refresh_takes_a_new_one_at_each_multiple():
    self_teacher, found = make(switch=0.5, refresh=0.1), []
    for u in (0.45, 0.5, 0.55, 0.6, 0.75, 0.8):
        self_teacher.before_step(Student(u), at(u))
        found.append(held(self_teacher))
    assert found == pytest.approx([None, 0.5, 0.5, 0.6, 0.75, 0.8])


def test_the_moving_average_starts_at_the_switch_and_follows():
    self_teacher, found = make(kind="ema", switch=0.5, decay=0.75), []
    for u, value in ((0.4, 9.0), (0.5, 1.0), (0.6, 2.0), (0.7, 2.0)):
        self_teacher.before_step(Student(value), at(u))
        found.append(held(self_teacher))
    assert found == pytest.approx([None, 1.0, 1.25, 1.4375])


def test_the_best_is_fetched_at_the_switch_and_replaced_by_better_ones():
    self_teacher = make(Student(1.0), kind="best", switch=0.5)
    self_teacher.before_step(Student(2.0), at(0.5))
    assert held(self_teacher) == 1.0
    self_teacher.after_evaluation(Student(3.0), better=False)
    assert held(self_teacher) == 1.0
    self_teacher.after_evaluation(Student(4.0), better=True)
    self_teacher.before_step(Student(5.0), at(0.9))
    assert held(self_teacher) == 4.0


@pytest.mark.parametrize("kind", ["snapshot", "ema", "best"])
def test_a_copy_goes_on_where_it_was_kept(kind: str):
    extra = {"refresh": 0.25} if kind == "snapshot" else {}
    self_teacher, again = (make(Student(0.5), kind=kind, switch=0.25, **extra) for _ in range(2))
    for u in (0.25, 0.3, 0.55):
        self_teacher.before_step(Student(u), at(u))
    again.restore(*self_teacher.state(), lambda shrunk: Student(9.0))
    for u in (0.6, 0.8, 0.9):
        for one in (self_teacher, again):
            one.before_step(Student(u), at(u))
        assert held(self_teacher) == held(again)
