import torch

from askd_ray.config.schema import SelfTeacher
from askd_ray.distill.self_teacher import Snapshot


def test_nothing_is_held_before_the_switch_or_without_weight():
    student = torch.nn.Linear(2, 2)
    for settings in (
        SelfTeacher(switch=0.5),
        SelfTeacher(switch=0.0, weight=0.0),
        SelfTeacher(kind="none", switch=0.0),
    ):
        snapshot = Snapshot(settings)
        snapshot.update(student, 0.4)  # type: ignore[arg-type]
        assert snapshot.model is None and snapshot.taken == -1


def test_the_snapshot_is_taken_once_and_does_not_follow_the_student():
    student = torch.nn.Linear(2, 2)
    snapshot = Snapshot(SelfTeacher(switch=0.5))
    snapshot.update(student, 0.5)  # type: ignore[arg-type]
    assert snapshot.model is not None
    frozen = snapshot.model.weight.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        student.weight += 1.0
    snapshot.update(student, 0.9)  # type: ignore[arg-type]
    assert torch.equal(snapshot.model.weight, frozen)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in snapshot.model.parameters())


def test_refresh_takes_a_new_one_at_each_multiple():
    snapshot = Snapshot(SelfTeacher(switch=0.5, refresh=0.1))
    student, taken = torch.nn.Linear(2, 2), []
    for u in (0.45, 0.5, 0.55, 0.6, 0.75, 0.8):
        snapshot.update(student, u)  # type: ignore[arg-type]
        taken.append(snapshot.taken)
    assert taken == [-1, 0, 0, 1, 2, 3]
