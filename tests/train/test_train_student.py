"""The loop trains a student that is no Whisper: the one of docs/extending.md."""

from pathlib import Path
from typing import Any

import pytest
import torch
from extending import example
from killed_run import CPU, assert_same_run, killed, metrics_of
from small_run import with_objective

from askd_ray.config.schema import Recipe
from askd_ray.models.windows import WindowedWhisper
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext

TRAIN = {"optimizer": {"lr": 0.05, "encoder_lr": 0.05, "ema_decay": 0.5}, "evals_per_epoch": 2}


@pytest.mark.parametrize("self_teacher", ["ema", "best"])
def test_a_student_that_is_no_whisper_trains_and_resumes_with_the_same_bits(
    labelled: Recipe, tmp_path: Path, self_teacher: str
):
    kind: Any = example("MeanStudentKind")
    objective = {"self_teacher": {"kind": self_teacher, "switch": 0.3, "weight": 0.2}}
    recipe = with_objective(labelled, objective, train=TRAIN)
    loop = build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key", build_kind=kind)
    student = loop.objects.student
    assert not any(isinstance(module, WindowedWhisper) for module in student.modules())
    summary = loop.run()
    metrics = metrics_of(tmp_path / "whole")
    assert metrics[-1]["ce"] < 0.9 * metrics[0]["ce"] and metrics[-1]["self_kd"] > 0.0
    assert summary["params_m"] == round(student.n_params / 1e6, 2)
    killed(recipe, tmp_path / "killed", 8, build_kind=kind)
    again = build_loop(recipe, PlainContext(CPU), tmp_path / "killed", "key", build_kind=kind)
    assert again.train_state.step > 0
    again.run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    whole, resumed = (kind(recipe, 0).load(tmp_path / name / "best", 0).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_head_learns_beside_a_whisper_that_stays_as_it_is(labelled: Recipe, tmp_path: Path):
    frozen = {"encoder": 1.0, "decoder": 1.0, "embeddings": 1.0}
    recipe = with_objective(
        labelled,
        {"preset": "ctc"},
        student={"reader": "hybrid"},
        train={"optimizer": {"head_lr": 0.05, "frozen_until": frozen}},
    )
    loop = build_loop(recipe, PlainContext(CPU), tmp_path, "key")
    before = {name: tensor.clone() for name, tensor in loop.objects.student.state_dict().items()}
    loop.run()
    changed = {name for name, t in loop.objects.student.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"head.projection", "head.transform.weight", "head.transform.bias"}
    line = metrics_of(tmp_path)[3]
    assert line["lr/head"] == pytest.approx(10 * line["lr/decoder"])
