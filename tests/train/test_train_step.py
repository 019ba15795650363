"""Gradients with plain SGD: several micro-batches or two ranks give the same as one batch, for every preset."""

import copy
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batch_rows import at_targets, some_rows
from small_run import with_objective
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from askd_ray.config.presets import CTC_PRESETS, PRESETS
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import empty_batch, from_bytes, to_bytes
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.models.load import load_whisper
from askd_ray.models.student import StudentModel
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.online_teacher import OnlineTeacher
from askd_ray.objective.schedules import Progress, Weights, weights_at
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.objective.tensors import TensorBatch
from askd_ray.train.build import student_kind, student_reader
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.ledger import TRAINED
from askd_ray.train.step import OVERFLOW, Stepper, StepResult

CPU = torch.device("cpu")
LATE = Progress(0.9, 1, 2)
VOCABULARY = 51864


def a_batch(recipe: Recipe, teacher_n_mels: int = 0) -> Batch:
    stream = make_batch_loader(recipe, 80, teacher_n_mels)
    tasks = tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1)
    return next(b for t in tasks for b in stream.batches(t) if len(b.ids) == 3)


def other(student: StudentModel) -> Any:
    """A model with different outputs."""
    model = copy.deepcopy(student)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layers.0.fc1.weight"):
                parameter.mul_(1.5)
    return model


def distiller(recipe: Recipe, student: StudentModel, whole: Batch) -> tuple[Distiller, Weights]:
    """The recipe's objective late in its run, with a self-teacher that is ready."""
    folder = Path(tempfile.mkdtemp(dir=recipe.runs_root))
    self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None, folder)
    online = OnlineTeacher(other(student), shares_encoder=False) if recipe.teacher.online else None
    earlier = other(student)
    threshold = TensorBatch.of(whole, CPU).teacher_loss.mean().item()
    made = Distiller(recipe.objective, self_teacher, online, threshold, student_reader(recipe))
    self_teacher.before_step(earlier, Progress(0.0, 0, 2))
    if recipe.objective.self_teacher.kind == "previous_epoch":  # needs the distributions of an epoch
        with torch.no_grad():
            made.sums(earlier, earlier, TensorBatch.of(whole, CPU), weights_at(recipe.objective, Progress(0.0, 0, 2)))
    self_teacher.before_step(earlier, LATE)
    return made, weights_at(recipe.objective, LATE, gap=0.5)


def sgd_step(
    network: torch.nn.Module, student: StudentModel, recipe: Recipe, batches: list[Batch], whole: Batch
) -> StepResult:
    """One step on some micro-batches; the gradient stays in the parameters."""
    made, weights = distiller(recipe, student, whole)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    settings = with_objective(recipe, {}, train={"optimizer": {"clip_norm": 1e9}}).train
    stepper = Stepper(network, student, optimizer, made, settings, GradScaler("cpu", enabled=False))
    return stepper.step(batches, weights, range(len(batches)))


def gradients(recipe: Recipe, model: Path, batches: list[Batch], whole: Batch) -> dict[str, torch.Tensor]:
    """The gradients of a step on some micro-batches."""
    student = student_kind(recipe).build(0).train()
    sgd_step(student, student, recipe, batches, whole)
    return {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


COMPRESSORS = ["pooling", "hfq"]
CASES = [*PRESETS, "hybrid", *COMPRESSORS]
"""Every preset, a student with both readers, and students whose decoder reads compressed states."""


def of_preset(labelled: Recipe, preset: str) -> Recipe:
    settings: dict[str, Any] = {"preset": preset}
    if preset in CTC_PRESETS:
        if preset in ("inter_kd", "askd_ctc"):
            settings |= {"intermediate": {"layers": [0, 1]}}
        return with_objective(labelled, settings, targets={"states": "all"}, student={"reader": "ctc"})
    if preset == "hybrid":
        settings = {"preset": "askd", "intermediate": {"kind": "ctc", "layers": [0], "self_kd": True}}
        return with_objective(labelled, settings, targets={"states": "all"}, student={"reader": "hybrid"})
    if preset in COMPRESSORS:
        compressor = {"kind": preset, "rate": 12.5}
        return with_objective(
            labelled, {"preset": "askd"}, targets={"states": "all"}, student={"compressor": compressor}
        )
    if preset in ("askd", "askd_gap", "askd_window"):
        settings |= {"trust_gate": {"kind": "soft"}, "instance_weights": {"kind": "adakd"}}
    if preset == "askd_window":
        settings |= {"states_weight": {"until": 1.0, "end": 0.3}}
    return with_objective(labelled, settings, targets={"states": "all"})


def reading_states(labelled: Recipe) -> Recipe:
    """A recipe whose batches have the decoder states of the teacher."""
    return with_objective(labelled, {"decoder_states": {"kind": "mse"}}, targets={"states": "all"})


@pytest.mark.parametrize("preset", CASES)
def test_micro_batches_equal_one_batch(labelled: Recipe, tiny_model: Path, preset: str):
    recipe = of_preset(labelled, preset)
    whole = a_batch(reading_states(labelled))
    whole.has_teacher[whole.rows == 1] = False
    parts = [*(some_rows(whole, [i]) for i in range(3)), empty_batch(80, 4, states_shape=(2, 32))]
    one, many = (gradients(recipe, tiny_model, batches, whole) for batches in ([whole], parts))
    assert one.keys() == many.keys() and any(g.abs().max() > 1e-4 for g in one.values())
    for name, gradient in one.items():
        # Rounding errors are of the size of a tensor's largest gradients, also in its small ones, where terms cancel.
        assert (many[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name


def in_windows(batch: Batch, row: int) -> Batch:
    """One row of a batch, alone in its window."""
    alone = some_rows(batch, [row])
    return Batch(**{**vars(alone), "log_mel": alone.log_mel[:, :, : batch.window_frames[row]]})


@pytest.mark.parametrize(
    ("hidden_states", "compressor"), [("none", "none"), ("mse", "none"), ("cosine", "none"), ("mse", "hfq")]
)
def test_batch_equals_rows_alone_in_their_windows(
    labelled: Recipe, tiny_model: Path, hidden_states: str, compressor: str
):
    recipe = labelled
    if hidden_states != "none":
        objective = {"hidden_states": {"kind": hidden_states, "layers": [[0, 0], [-1, -1]], "weight": 10.0}}
        teacher, student = {"online": True, "top_k": 32}, {"compressor": {"kind": compressor}}
        recipe = with_objective(labelled, objective, teacher=teacher, student=student)
    whole = a_batch(labelled)
    assert len(set(whole.window_frames.tolist())) == 3 == len(whole.ids)
    padded = np.random.default_rng(0).standard_normal((3, 80, 3000)).astype(np.float32)
    whole = Batch(**{**vars(whole), "teacher_log_mel": padded})
    student = student_kind(recipe, teacher_width=32).build(0)
    teacher = WindowedWhisper(load_whisper(str(tiny_model))[0], [0, -1])
    with torch.no_grad():
        teacher.whisper.model.encoder.layers[0].fc1.weight.mul_(1.5)
    online = OnlineTeacher(teacher, shares_encoder=False) if recipe.teacher.online else None
    made = Distiller(recipe.objective, build_self_teacher(recipe.objective.self_teacher, lambda: None), online, 0.0)

    def loss_of(batch: Batch) -> torch.Tensor:
        return made.sums(student, student, TensorBatch.of(batch, CPU), Weights(0.5, 0.0))[0]

    assert TensorBatch.of(in_windows(whole, 0), CPU).window_frames is None
    together, apart = loss_of(whole), sum(loss_of(in_windows(whole, row)) for row in range(3))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    trained = [p for p in student.parameters() if p.requires_grad]
    for one, other_ in zip(*(torch.autograd.grad(x, trained) for x in (together, apart)), strict=True):
        torch.testing.assert_close(one, other_, atol=1e-5, rtol=1e-4)


def _rank(rank: int, model: str, recipes: list[str], data: dict[str, bytes], out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/ranks", rank=rank, world_size=2)
    batches = {name: from_bytes(batch) for name, batch in data.items()}
    for number, (text, step) in enumerate(itertools.product(recipes, SHARES)):
        recipe = Recipe.model_validate_json(text)
        student = student_kind(recipe).build(0).train()
        network = DistributedDataParallel(student)
        rank_batches = [batches[name] for name in step[rank]]
        result = sgd_step(network, student, recipe, rank_batches, batches["whole"])
        torch.save((result.means["loss"], dict(student.named_parameters())), f"{out}/{rank}-{number}.pt")
    dist.destroy_process_group()


# Micro-batches of each rank in a step: uneven ones, and none for the second rank
SHARES = [(["u0", "none"], ["u1", "u2"]), (["whole"], ["none"])]


@pytest.mark.full
@pytest.mark.slow
def test_two_ranks_equal_one(labelled: Recipe, tiny_model: Path, tmp_path: Path):
    recipes = [of_preset(labelled, preset) for preset in CASES]
    batch, none = a_batch(reading_states(labelled)), empty_batch(80, 4, states_shape=(2, 32))
    data = {f"u{i}": some_rows(batch, [i]) for i in range(3)} | {"whole": batch, "none": none}
    texts = [json.dumps(recipe.model_dump(mode="json")) for recipe in recipes]
    sent = {name: to_bytes(b) for name, b in data.items()}
    mp.spawn(_rank, (str(tiny_model), texts, sent, str(tmp_path)), nprocs=2)
    for number, recipe in enumerate(recipes):
        student = student_kind(recipe).build(0).train()
        alone = sgd_step(student, student, recipe, [batch], batch)
        for rank, share in itertools.product(range(2), range(2)):
            loss, parameters = torch.load(tmp_path / f"{rank}-{2 * number + share}.pt", weights_only=False)
            assert loss == pytest.approx(alone.means["loss"], rel=1e-5), recipe.objective.preset
            for name, parameter in student.named_parameters():
                torch.testing.assert_close(parameters[name], parameter, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_gradient_is_close_to_float32(labelled: Recipe, tiny_model: Path, precision: str):
    whole = a_batch(labelled)
    exact, rough = (
        gradients(with_objective(labelled, {}, train={"precision": p}), tiny_model, [whole], whole)
        for p in ("float32", precision)
    )
    assert exact.keys() == rough.keys() and {g.dtype for g in rough.values()} == {torch.float32}
    one, two = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, rough))
    assert not torch.equal(one, two)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.999


def test_gradient_checkpointing_saves_memory_and_keeps_gradients(labelled: Recipe, tiny_model: Path):
    whole, kept, found = a_batch(labelled), list[int](), list[dict[str, torch.Tensor]]()
    for checkpointing in (False, True):
        recipe = with_objective(labelled, {}, train={"gradient_checkpointing": checkpointing})
        student = WhisperStudentKind(recipe).build(0).train()
        n_bytes = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal n_bytes
            n_bytes += tensor.nbytes if tensor.shape[-1:] != (VOCABULARY,) and tensor.shape[:1] != (VOCABULARY,) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sgd_step(student, student, recipe, [whole], whole)
        kept.append(n_bytes)
        found.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-5)
    assert kept[1] < 0.5 * kept[0]


def test_float16_overflow_skips_a_step(labelled: Recipe, tiny_model: Path):
    """A scale that is too large makes gradients infinite: the step is skipped, and the scale halved."""
    recipe = with_objective(labelled, {}, train={"precision": "float16"})
    whole, student = a_batch(labelled), WhisperStudent(load_whisper(str(tiny_model))[0])
    made, weights = distiller(recipe, student, whole)
    scaler = GradScaler("cpu", init_scale=2.0**40)
    stepper = Stepper(student, student, torch.optim.SGD(student.parameters(), lr=0.1), made, recipe.train, scaler)
    before = {n: p.clone() for n, p in student.named_parameters()}
    assert stepper.step([whole], weights, [0]).outcome == OVERFLOW
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[n]) for n, p in student.named_parameters())
    outcomes = [stepper.step([whole], weights, [0]).outcome for _ in range(40)]
    assert TRAINED in outcomes and outcomes == sorted(outcomes)  # first they overflow, then they do not


def test_attention_is_sdpa(labelled: Recipe):
    assert load_whisper(labelled.teacher.model)[0].config._attn_implementation == "sdpa"


def test_online_teacher_equals_cached_labels_of_all_tokens(labelled: Recipe, tiny_model: Path):
    online = with_objective(labelled, {"trust_gate": {"kind": "soft"}}, teacher={"online": True, "top_k": 32})
    cached = with_objective(labelled, {"trust_gate": {"kind": "soft"}})
    student = WhisperStudent(load_whisper(str(tiny_model))[0])
    batch = a_batch(labelled)
    padded = np.random.default_rng(0).standard_normal((3, 80, 3000)).astype(np.float32)
    batch = Batch(**{**vars(batch), "teacher_log_mel": padded})
    made, weights = distiller(online, student, batch)
    tensors = TensorBatch.of(batch, CPU)
    expected, sums = made.sums(student, student, tensors, weights)

    teacher = other(student)
    with torch.no_grad():
        logits = torch.nn.functional.linear(
            teacher(tensors.teacher_log_mel, tensors.decoder_ids).hidden, teacher.projection
        )
    log_p = torch.log_softmax(tensors.at_targets(logits), -1)
    full = {
        "top_ids": torch.arange(log_p.shape[-1]).expand(*log_p.shape).numpy(),
        "top_log_probs": log_p.numpy(),
        "rest_log_prob": np.full(len(log_p), -np.inf, np.float32),
        "token_loss": -log_p.gather(-1, tensors.targets[:, None])[:, 0].numpy(),
    }
    same, weights = distiller(cached, student, batch)
    found, cached_sums = same.sums(student, student, TensorBatch.of(Batch(**{**vars(batch), **full}), CPU), weights)
    torch.testing.assert_close(cached_sums, sums, rtol=1e-5, atol=1e-5)
    trained = [p for p in student.parameters() if p.requires_grad]
    for one, two in zip(*(torch.autograd.grad(x, trained) for x in (expected, found)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_online_teacher_is_skipped_at_weight_zero(labelled: Recipe, tiny_model: Path):
    student = WhisperStudent(load_whisper(str(tiny_model))[0])
    batch, objective = a_batch(labelled), labelled.objective
    teacher = OnlineTeacher(other(student), shares_encoder=False)
    made = Distiller(objective, build_self_teacher(objective.self_teacher, lambda: None), teacher, 0.0)
    teacher.model.forward = None  # type: ignore[method-assign,assignment]  # calling it would fail
    made.sums(student, student, TensorBatch.of(batch, CPU), Weights(0.0, 0.2))
    with pytest.raises(TypeError):
        made.sums(student, student, TensorBatch.of(batch, CPU), Weights(0.1, 0.2))


def test_batch_round_trip(labelled: Recipe):
    batch = a_batch(labelled, teacher_n_mels=80)
    assert batch.teacher_log_mel.shape == (3, 80, 3000)
    for one in (batch, a_batch(labelled), a_batch(reading_states(labelled))):
        again = from_bytes(to_bytes(one))
        assert again.ids == one.ids
        for name, value in vars(one).items():
            if name != "ids":
                np.testing.assert_array_equal(getattr(again, name), value)
                assert getattr(again, name).dtype == value.dtype


def test_targets_follow_the_prompt(labelled: Recipe):
    batch = a_batch(labelled)
    sot, notimestamps, end = 50257, 50362, 50256
    for row, ids in enumerate(batch.decoder_ids):
        text, positions = batch.targets[batch.rows == row], at_targets(batch, row)
        assert ids[:2].tolist() == [sot, notimestamps]
        assert positions.tolist() == list(range(1, 1 + len(text))) and text[-1] == end
        assert ids[2 : 1 + len(text)].tolist() == text[:-1].tolist()
    assert batch.n_targets.sum() == batch.n_tokens == len(batch.targets)
    mass = np.exp(batch.top_log_probs).sum(-1) + np.exp(batch.rest_log_prob)
    np.testing.assert_allclose(mass, 1.0, atol=5e-3)
    assert (batch.token_loss > 0).all()
    for row, loss in enumerate(batch.teacher_loss):
        assert loss == pytest.approx(batch.token_loss[batch.rows == row].mean(), rel=1e-6)
