"""A student that shrinks during training: same bits after a kill, moments are kept, the best student is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from killed_run import CPU, assert_same_run, checkpoint, killed
from small_run import with_objective
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.data.sampler import DataCursor, steps_from
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.whisper_student import WhisperStudentKind
from askd_ray.text.error_rate import ErrorCounts
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import DevGroup
from askd_ray.train.loop import is_evaluated
from askd_ray.train.optim import build_optimizer, freeze
from askd_ray.train.ray_trainer import check_inputs
from askd_ray.train.shrink import due_shrinkings, shrink
from askd_ray.train.track import read_metrics

# Of ten steps, counted from 0: shrinkings before steps 3 and 6. Dev is scored when 3, 5, 8 and 10 are done.
SHRINK = [
    {"at": 0.25, "decoder_layers": [0, 1, 3]},
    {"at": 0.6, "decoder_layers": [0, [1, 3]], "encoder_layers": [[0, 1]]},
]
EARLY_SNAPSHOT = {"self_teacher": {"kind": "snapshot", "switch": 0.1, "weight": 0.3}}


@pytest.fixture(scope="module")
def shrinking(labelled: Recipe, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The labelled run with a student of two encoder and four decoder layers, of which one and two remain."""
    torch.manual_seed(1)
    teacher, tokens = load_whisper(str(tiny_model))
    model = WhisperForConditionalGeneration(WhisperConfig(**{**teacher.config.to_dict(), "decoder_layers": 4}))
    model.generation_config = teacher.generation_config
    folder = tmp_path_factory.mktemp("deep") / "model"
    save_whisper(model, tokens, folder)
    student = {"init": str(folder), "shrink": SHRINK}
    return with_objective(labelled, EARLY_SNAPSHOT, student=student, train={"evals_per_epoch": 2})


@pytest.fixture(scope="module")
def undisturbed(shrinking: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    loop = build_loop(shrinking, PlainContext(CPU), folder, "key")
    steps = list(steps_from(loop.sampler, DataCursor()))
    assert [due_shrinkings(shrinking.student, s.begins) for s in steps] == [0] * 3 + [1] * 3 + [2] * 4
    assert [i for i, s in enumerate(steps, 1) if is_evaluated(s, shrinking.train)] == [3, 5, 8, 10]
    summary = loop.run()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


# Before a checkpoint; with one from before the first shrinking; between the two; after the second
@pytest.mark.full
@pytest.mark.parametrize("dies_after", [pytest.param(1, marks=pytest.mark.slow), 4, 6, 8])
def test_killed_run_ends_with_the_same_bits(shrinking: Recipe, undisturbed: Path, tmp_path: Path, dies_after: int):
    killed(shrinking, tmp_path, dies_after)
    build_loop(shrinking, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, undisturbed)


@pytest.fixture(scope="module", params=["ema", "best", "previous_epoch"])
def whole(
    request: pytest.FixtureRequest, shrinking: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path]:
    """An undisturbed run with each of the other self-teachers."""
    recipe = with_objective(shrinking, {"self_teacher": {"kind": request.param, "switch": 0.2, "weight": 0.3}})
    folder = tmp_path_factory.mktemp("whole")
    build_loop(recipe, PlainContext(CPU), folder, "key").run()
    return recipe, folder


@pytest.mark.full
@pytest.mark.parametrize("dies_after", [4, 6, 8])
def test_every_self_teacher_resumes(whole: tuple[Recipe, Path], tmp_path: Path, dies_after: int):
    recipe, expected = whole
    killed(recipe, tmp_path, dies_after)
    build_loop(recipe, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, expected)
    assert read_metrics(expected)[-1]["self_kd"] > 0.0


def test_remaining_layers_are_those_of_the_recipe(shrinking: Recipe, undisturbed: Path):
    student, _ = load_whisper(str(undisturbed / "best"))
    assert (student.config.encoder_layers, student.config.decoder_layers) == (1, 2)
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["params_m"] == round(sum(p.numel() for p in student.parameters()) / 1e6, 2)
    assert summary["best_step"] in (8, 10)
    again = build_loop(shrinking, PlainContext(CPU), undisturbed, "key")  # a finished run, resumed
    assert again.summary() == summary


def test_deeper_snapshot_resumes(shrinking: Recipe, tmp_path: Path):
    killed(shrinking, tmp_path, 8)
    before = checkpoint(tmp_path, "self_teacher")
    loop = build_loop(shrinking, PlainContext(CPU), tmp_path, "key")
    self_teacher: Any = loop.distiller.self_teacher
    assert (loop.objects.student.shrunk, self_teacher.model.shrunk) == (2, 0)
    assert (
        len(self_teacher.model.whisper.model.decoder.layers) == 4
        and len(loop.objects.student.whisper.model.decoder.layers) == 2
    )
    assert all(torch.equal(value, before[name]) for name, value in self_teacher.model.state_dict().items())


@pytest.mark.slow
def test_moving_average_restarts_after_shrinking(shrinking: Recipe, tmp_path: Path):
    recipe = with_objective(shrinking, {"self_teacher": {"kind": "ema", "switch": 0.1, "decay": 0.5}})
    killed(recipe, tmp_path, 6)
    assert build_loop(recipe, PlainContext(CPU), tmp_path, "key").distiller.self_teacher.model.shrunk == 1  # type: ignore[attr-defined]
    loop = build_loop(recipe, PlainContext(CPU), tmp_path, "key")
    loop.run()
    self_teacher: Any = loop.distiller.self_teacher
    assert self_teacher.model.shrunk == 2
    copied, student = self_teacher.model.state_dict(), loop.objects.student.state_dict()
    assert copied.keys() == student.keys()
    name = "whisper.model.decoder.layers.1.fc1.weight"
    assert 0.0 < (copied[name] - student[name]).abs().max() < 0.05


def test_moments_are_kept_or_averaged(shrinking: Recipe):
    recipe = with_objective(shrinking, EARLY_SNAPSHOT, train={"optimizer": {"frozen_until": {"encoder": 0.9}}})
    kind = WhisperStudentKind(recipe)
    student = kind.build(0)
    optimizer = build_optimizer(student, recipe.train.optimizer)
    assert freeze(optimizer, recipe.train.optimizer.frozen_until, 0.5)
    torch.manual_seed(0)
    for _ in range(2):
        for parameter in student.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    smaller, fresh = shrink(kind, *shrink(kind, student, optimizer, recipe.train.optimizer), recipe.train.optimizer)
    assert smaller.shrunk == 2
    old, new = dict(student.named_parameters()), dict(smaller.named_parameters())
    layers = "whisper.model.decoder.layers"
    made_of = {
        f"{layers}.0.fc1.weight": [f"{layers}.0.fc1.weight"],
        f"{layers}.1.encoder_attn.q_proj.bias": [f"{layers}.{i}.encoder_attn.q_proj.bias" for i in (1, 3)],
        "whisper.model.decoder.embed_tokens.weight": ["whisper.model.decoder.embed_tokens.weight"],
    }
    for name, sources in made_of.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = torch.stack([optimizer.state[old[s]][moment] for s in sources]).mean(0)
            assert expected.abs().max() > 0.0
            torch.testing.assert_close(fresh.state[new[name]][moment], expected, rtol=0, atol=0)
        assert fresh.state[new[name]]["step"] == 2
    assert torch.equal(new[f"{layers}.0.fc1.weight"], old[f"{layers}.0.fc1.weight"])
    assert {n for n, p in new.items() if p in fresh.state} == {n for n, p in new.items() if p.requires_grad}
    assert not any(p.requires_grad for n, p in new.items() if ".encoder." in n)
    assert (
        freeze(fresh, recipe.train.optimizer.frozen_until, 0.9)
        and new["whisper.model.encoder.conv1.weight"].requires_grad
    )


def test_best_student_has_the_final_size(shrinking: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates = iter((1, 2, 8, 6))
    monkeypatch.setattr(
        "askd_ray.train.loop.dev_errors", lambda *_: {DevGroup("", "tones"): ErrorCounts(next(rates), 0, 0, 10)}
    )
    context = PlainContext(CPU)
    summary = build_loop(shrinking, context, tmp_path, "key").run()
    assert (summary["dev_wer"], summary["best_step"]) == (0.6, 10)
    assert load_whisper(str(tmp_path / "best"))[0].config.decoder_layers == 2
    assert [report["dev_wer"] for report in context.reports] == [0.8, 0.6]  # a search does not score larger students
    assert [m["dev_wer"] for m in read_metrics(tmp_path) if "dev_wer" in m] == [0.1, 0.2, 0.8, 0.6]


def test_shrinking_after_the_last_step_is_refused(shrinking: Recipe):
    one_step = with_objective(shrinking, {}, train={"epochs": 0.4})
    with pytest.raises(AskdError, match=r"shrink at 0\.6 is too late: the last step begins at 0\.5 of"):
        check_inputs(one_step)


def _rank(rank: int, text: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    loop = build_loop(Recipe.model_validate_json(text), PlainContext(CPU, rank, 2), Path(folder) / "run", "key")
    summary = loop.run()
    torch.save((summary, loop.objects.student.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.full
@pytest.mark.slow
def test_two_ranks_shrink_together(shrinking: Recipe, tmp_path: Path):
    recipe = with_objective(shrinking, EARLY_SNAPSHOT, train={"batching": {"micro_batches": 2}})
    mp.spawn(_rank, (recipe.model_dump_json(), str(tmp_path)), nprocs=2)
    (summary, one), (empty, two) = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert summary["workers"] == 2 and empty == {}  # the summary is rank 0's
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert checkpoint(tmp_path / "run").keys() == one.keys()
