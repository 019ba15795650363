"""Training on decoder states: cached or online, with a projection, through shrinkings, and without a teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batch_rows import some_rows
from killed_run import CPU, assert_same_run, checkpoint, killed, metrics_of
from small_run import with_objective
from tiny_run import write_labelled_run
from torch.amp.grad_scaler import GradScaler
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import empty_batch
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.distiller import NAMES, Distiller
from askd_ray.objective.online_teacher import OnlineTeacher
from askd_ray.objective.schedules import Progress, Weights
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.objective.tensors import TensorBatch
from askd_ray.text.error_rate import ErrorCounts
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import DevGroup
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.step import Stepper, StepResult

DEPTH, WIDTH = 4, 48
TARGETS = {"states": "all"}


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of four decoder layers: a teacher of width 32, and a wider student."""
    teacher, tokens = load_whisper(str(tiny_model))
    made: dict[str, Path] = {}
    for name, width in (("teacher", 32), ("wide", WIDTH)):
        torch.manual_seed(1)
        shape = {"decoder_layers": DEPTH, "d_model": width}
        model = WhisperForConditionalGeneration(WhisperConfig(**{**teacher.config.to_dict(), **shape}))
        model.generation_config = teacher.generation_config
        made[name] = tmp_path_factory.mktemp(name) / "model"
        save_whisper(model, tokens, made[name])
    return made


@pytest.fixture(scope="module")
def deep(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The labelled run with a teacher of four decoder layers."""
    return write_labelled_run(tmp_path_factory.mktemp("deep"), models["teacher"])


def a_batch(recipe: Recipe, teacher_n_mels: int = 0) -> Batch:
    stream = make_batch_loader(recipe, 80, teacher_n_mels)
    tasks = tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1)
    return next(b for t in tasks for b in stream.batches(t) if len(b.ids) == 3)


def matching(recipe: Recipe, **states: Any) -> Recipe:
    """The recipe with decoder states in its objective, and a self-teacher from the start."""
    objective = {
        "decoder_states": {"kind": "mse", "self_teacher": True, **states},
        "states_weight": {"schedule": "linear"},
        "self_teacher": {"kind": "ema", "switch": 0.0, "decay": 0.5},
    }
    return with_objective(recipe, objective, targets=TARGETS)


def sums(
    recipe: Recipe, student: WhisperStudent, batch: Batch, weights: Weights, online: OnlineTeacher | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss and its parts, with an untouched student as the self-teacher."""
    self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None)
    self_teacher.before_step(WhisperStudentKind(recipe).build(0), Progress(0.5, 0, 1))
    made = Distiller(recipe.objective, self_teacher, online, 0.0)
    loss, parts = made.sums(student, student, TensorBatch.of(batch, CPU), weights)
    return loss, dict(zip(NAMES, parts.tolist(), strict=True))


def changed(student: WhisperStudent) -> WhisperStudent:
    with torch.no_grad():
        for layer in student.whisper.model.decoder.layers:
            layer.fc1.weight.mul_(1.5)
    return student


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("layers", ["all", "last", [[1, 0], [-1, 2]]])
def test_term_equals_plain_loops(deep: Recipe, kind: str, layers: Any):
    """scale [s m_n D(teacher) + b D(self)], on the outputs that transformers returns."""
    recipe = matching(deep, kind=kind, layers=layers, scale=3.0)
    batch = a_batch(recipe)
    batch.window_frames[:] = batch.log_mel.shape[2]  # transformers has no mask for windows of other lengths
    batch.has_teacher[batch.rows == 1] = False
    student = changed(WhisperStudentKind(recipe).build(0))
    weights = Weights(0.5, 0.2, states_weight=0.7)
    loss, parts = sums(recipe, student, batch, weights)
    with torch.no_grad():
        after, at_start = (_outputs(model, batch) for model in (student, WhisperStudentKind(recipe).build(0)))
    pairs = {"all": [(n, n) for n in range(DEPTH)], "last": [(-1, -1)]}.get(str(layers), layers)
    of_teacher = of_self = 0.0
    for i, n, states_of_token, taught in zip(
        batch.rows,
        batch.target_positions % batch.decoder_ids.shape[1],
        batch.states,
        batch.has_teacher,
        strict=True,
    ):
        for layer, teacher_layer in pairs:
            states = torch.from_numpy(states_of_token.astype(np.float32))
            of_teacher += float(taught) * _distance(kind, after[layer][i, n], states[teacher_layer])
            of_self += _distance(kind, after[layer][i, n], at_start[layer][i, n])
    assert parts["states"] == pytest.approx(of_teacher, rel=1e-4) and of_teacher > 1e-3
    assert parts["self_states"] == pytest.approx(of_self, rel=1e-4) and of_self > 1e-3
    plain = with_objective(deep, {"self_teacher": {"kind": "ema", "switch": 0.0}}, targets=TARGETS)
    without, _ = sums(plain, student, batch, weights)
    assert loss.item() == pytest.approx(without.item() + 3.0 * (0.7 * of_teacher + 0.2 * of_self), rel=1e-5)


def _outputs(model: WhisperStudent, batch: Batch) -> list[torch.Tensor]:
    encoded = model.encode(torch.from_numpy(batch.log_mel)).states
    ids = torch.from_numpy(batch.decoder_ids)
    decoded = model.whisper.model.decoder(
        input_ids=ids, encoder_hidden_states=encoded, use_cache=False, output_hidden_states=True
    )
    assert decoded.hidden_states is not None
    return list(decoded.hidden_states[1:])


def _distance(kind: str, x: torch.Tensor, y: torch.Tensor) -> float:
    if kind == "mse":
        return ((x - y) ** 2).sum().item() / len(x)
    return 1.0 - (x @ y / (x.norm() * y.norm())).item()


def test_fixed_value(deep: Recipe):
    recipe = matching(deep, layers="last")
    batch, student = a_batch(recipe), WhisperStudentKind(recipe).build(0)
    batch.states[:] = 2.0
    with torch.no_grad():  # the states after the last layer norm are 0 then
        student.whisper.model.decoder.layer_norm.weight.zero_()
        student.whisper.model.decoder.layer_norm.bias.zero_()
    _, parts = sums(recipe, student, batch, Weights(0.0, 0.0, states_weight=1.0))
    assert parts["states"] == 4.0 * batch.n_tokens


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_student_that_equals_its_teachers_has_no_loss(deep: Recipe, kind: str):
    batching = {"batching": {"audio_s": 120.0}}
    padded = with_objective(deep, {}, window={"padded_share": 1.0}, augment=OFF, train=batching)
    recipe = matching(padded, kind=kind)
    student = WhisperStudentKind(recipe).build(0)
    _, parts = sums(recipe, student, a_batch(recipe), Weights(0.0, 0.2, states_weight=1.0))
    assert parts["self_states"] == pytest.approx(0.0, abs=1e-5)
    assert parts["states"] == pytest.approx(0.0, abs=1e-3)  # labels are float16


OFF = {"spec": {"freq_masks": 0, "time_masks": 0}}


def test_online_teacher_gives_the_cached_states(deep: Recipe):
    cached = matching(deep)
    objective = {
        "decoder_states": {"kind": "mse"},
        "states_weight": {"schedule": "linear"},
        "self_teacher": {"kind": "none"},
    }
    online_recipe = with_objective(deep, objective, teacher={"online": True, "top_k": 32}, targets={"states": "none"})
    batch = a_batch(cached, teacher_n_mels=80)
    teacher = WindowedWhisper(load_whisper(deep.teacher.model)[0], (), {n: n for n in range(DEPTH)})
    student = changed(WhisperStudentKind(cached).build(0))
    found, gradients = [], []
    for recipe, online in ((cached, None), (online_recipe, OnlineTeacher(teacher, shares_encoder=False))):
        loss, parts = sums(recipe, student, batch, Weights(0.0, 0.0, states_weight=0.5), online)
        found.append(parts["states"])
        trained = [p for p in student.whisper.model.decoder.layers.parameters()]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    assert found[0] == pytest.approx(found[1], rel=2e-3) and found[1] > 0.01
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-3 * float(gradients[1].abs().max()))


def test_values_of_the_teacher_are_means_over_its_tokens(deep: Recipe):
    """So the gap compares student and teacher on the same tokens."""
    recipe = matching(deep)
    batch, names = a_batch(recipe), ("kd", "teacher_ce", "teacher_share", "taught_ce", "states")
    batch.has_teacher[batch.rows == 1] = False
    alone = some_rows(batch, [0, 2])
    whole, part = (_sgd_step(recipe, changed(WhisperStudentKind(recipe).build(0)), [b]) for b in (batch, alone))
    assert whole.means["taught"] == pytest.approx(alone.n_tokens / batch.n_tokens) and part.means["taught"] == 1.0
    assert [whole.means[n] for n in names] == pytest.approx([part.means[n] for n in names], rel=1e-5, abs=1e-6)
    assert part.means["taught_ce"] == part.means["ce"] != whole.means["ce"]


def _sgd_step(
    recipe: Recipe, student: WhisperStudent, batches: list[Batch], weights: Weights | None = None
) -> StepResult:
    self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None)
    self_teacher.before_step(WhisperStudentKind(recipe).build(0), Progress(0.5, 0, 1))
    made = Distiller(recipe.objective, self_teacher, None, 0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    settings = with_objective(recipe, {}, train={"optimizer": {"clip_norm": 1e9}}).train
    stepper = Stepper(student, student, optimizer, made, settings, GradScaler("cpu", enabled=False))
    return stepper.step(batches, weights or Weights(0.5, 0.2, states_weight=0.7), range(len(batches)))


def test_projection_gets_the_same_gradient_from_micro_batches(deep: Recipe, models: dict[str, Path]):
    recipe = with_wide_student(deep, models)
    whole = a_batch(recipe)
    whole.has_teacher[whole.rows == 2] = False
    parts = [some_rows(whole, [i]) for i in range(3)] + [empty_batch(80, 4, states_shape=(DEPTH, 32))]
    found: list[dict[str, torch.Tensor]] = []
    for batches in ([whole], parts):
        torch.manual_seed(5)
        student = WhisperStudentKind(recipe).build(0)
        _sgd_step(recipe, student, batches)
        found.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    projections = [name for name in found[0] if name.startswith("to_decoder_width")]
    assert len(projections) == 2 * DEPTH and all(found[0][name].abs().max() > 0.0 for name in projections)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
    _sgd_step(recipe, student, [whole], Weights(0.5, 0.2))  # ranks exchange a gradient also where s is 0
    assert all(p.grad is not None and not p.grad.any() for p in student.to_decoder_width.parameters())


def with_wide_student(deep: Recipe, models: dict[str, Path], **student: Any) -> Recipe:
    recipe = matching(deep)
    return with_objective(
        recipe,
        recipe.objective.model_dump(),
        student={"init": str(models["wide"]), **student},
        train={"evals_per_epoch": 2, "optimizer": {"lr": 1e-3, "encoder_lr": 1e-3}},
    )


# Of ten steps: shrinkings before the third and before the sixth
SHRINK = [{"at": 0.25, "decoder_layers": [0, [1, 2], 3]}, {"at": 0.6, "decoder_layers": [[1, 2], 3]}]


@pytest.mark.parametrize(("self_teacher", "shrink"), [("best", []), ("snapshot", SHRINK)])
def test_killed_run_with_projections_ends_with_the_same_bits(
    deep: Recipe,
    models: dict[str, Path],
    tmp_path: Path,
    self_teacher: str,
    shrink: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("askd_ray.train.loop.dev_errors", lambda *_: {DevGroup("", "tones"): ErrorCounts(1, 0, 0, 10)})
    recipe = with_wide_student(deep, models, shrink=shrink)
    objective = {**recipe.objective.model_dump(), "self_teacher": {"kind": self_teacher, "switch": 0.1}}
    recipe = with_objective(recipe, objective)
    build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key").run()
    killed(recipe, tmp_path / "killed", 8)
    build_loop(recipe, PlainContext(CPU), tmp_path / "killed", "key").run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    metrics = metrics_of(tmp_path / "whole")
    assert metrics[0]["s"] == 1.0 and metrics[0]["states"] > metrics[3]["states"] > 0.0
    assert metrics[-1]["self_states"] > 0.0
    kept = {name.split(".")[1] for name in checkpoint(tmp_path / "whole") if name.startswith("to_decoder_width")}
    assert kept == ({"2", "3"} if shrink else {"0", "1", "2", "3"})
    student, _ = load_whisper(str(tmp_path / "whole" / "best"))
    assert (student.config.d_model, student.config.decoder_layers) == (WIDTH, 2 if shrink else DEPTH)
