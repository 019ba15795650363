"""The training of an LLM student: gradients of micro-batches, and exact resume."""

from pathlib import Path

import pytest
import torch
from batch_rows import some_rows
from killed_run import CPU, assert_same_run, killed, metrics_of
from tiny_llm import of_llm
from torch.amp.grad_scaler import GradScaler

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import empty_batch
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.train.build import build_loop, student_kind
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.step import Stepper


def a_batch(recipe: Recipe) -> Batch:
    loader = make_batch_loader(recipe, 80)
    tasks = tasks_from(length_grouped_sampler(loader.rows(), loader), DataCursor(), 0, 1)
    return next(batch for task in tasks for batch in loader.batches(task) if len(batch.ids) == 3)


def gradients(recipe: Recipe, batches: list[Batch]) -> dict[str, torch.Tensor]:
    student = student_kind(recipe).build(0).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameter_groups()["decoder"]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None)
    made = Distiller(recipe.objective, self_teacher, None, 0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    train = of_llm(recipe, Path(recipe.student.llm.model), train={"optimizer": {"clip_norm": 1e9}}).train
    stepper = Stepper(student, student, optimizer, made, train, GradScaler("cpu", enabled=False))
    stepper.step(batches, Weights(0.5, 0.0), range(len(batches)))
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def test_micro_batches_equal_one_batch(labelled_llm: Recipe):
    whole = a_batch(labelled_llm)
    assert len(set(whole.window_frames.tolist())) == 3
    parts = [*(some_rows(whole, [i]) for i in range(3)), empty_batch(80, 4)]
    one, many = gradients(labelled_llm, [whole]), gradients(labelled_llm, parts)
    assert one.keys() == many.keys() and any(g.abs().max() > 1e-4 for g in one.values())
    for name, gradient in one.items():
        assert (many[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name


@pytest.mark.parametrize("self_teacher", ["ema", "previous_epoch"])
def test_a_killed_run_ends_with_the_same_bits(labelled_llm: Recipe, tiny_llm: Path, tmp_path: Path, self_teacher: str):
    recipe = of_llm(
        labelled_llm,
        tiny_llm,
        objective={"self_teacher": {"kind": self_teacher, "switch": 0.5, "weight": 0.2, "refresh": 0.0}},
        train={"optimizer": {"lr": 0.01, "embedding_lr": 0.01}, "evals_per_epoch": 2, "checkpoint_steps": 3},
    )
    loop = build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key")
    frozen = {name: buffer.clone() for name, buffer in loop.objects.student.named_buffers()}
    loop.run()
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in loop.objects.student.named_buffers())
    metrics = metrics_of(tmp_path / "whole")
    assert metrics[-1]["ce"] < 0.97 * metrics[0]["ce"] and metrics[-1]["self_kd"] > 0.0 and metrics[0]["kd"] > 0.0
    killed(recipe, tmp_path / "killed", 8)
    build_loop(recipe, PlainContext(CPU), tmp_path / "killed", "key").run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    whole, resumed = (student_kind(recipe).load(tmp_path / name / "best", 0) for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
