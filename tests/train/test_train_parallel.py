"""Two ranks with a sharded student, compared with two ranks that each hold the whole student, and with one rank."""

import json
import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from killed_run import CPU, DyingContext, KilledError, assert_same_run, checkpoint, ledger_of, metrics_of
from pydantic import ValidationError
from small_run import with_objective
from torch.distributed.fsdp import FSDPModule

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.data.dev import DevClips, DevGroup, GroupSize
from askd_ray.data.labels import write_labels
from askd_ray.data.shards import read_table, read_utterances, shard_paths, to_utterances
from askd_ray.models.load import load_whisper
from askd_ray.objective.label_parts import CachedLabels, LabelParts
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import dev_errors
from askd_ray.train.loop import Loop
from askd_ray.train.optim import build_optimizer
from askd_ray.train.parallel import unsharded

# Four micro-batches a step, two a rank, and empty ones in the last step of an epoch
STEPS = {"batching": {"utterances": 1, "micro_batches": 4}, "checkpoint_steps": 2}
NO_SELF_TEACHER = {"self_teacher": {"kind": "none"}}
WAYS = ("ddp", "fsdp")


def recipes(labelled: Recipe) -> dict[str, Recipe]:
    """Recipes for plain SGD, for everything in a checkpoint, and for an online teacher; each with fsdp and ddp."""
    made: dict[str, Recipe] = {}
    for way in WAYS:
        train = STEPS | {"workers": {"count": 2, "parallel": way}}
        made[f"{way} sgd"] = with_objective(
            labelled, NO_SELF_TEACHER, train=train | {"epochs": 0.6, "optimizer": {"lr": 0.5, "encoder_lr": 0.5}}
        )
        frozen = {"encoder": 0.4, "embeddings": 0.7}
        optimizer = {"ema_decay": 0.9, "frozen_until": frozen}
        kept = {"epochs": 1.5, "optimizer": optimizer, "gradient_checkpointing": True}
        previous_epoch = {"self_teacher": {"kind": "previous_epoch", "switch": 0.5}}
        made[f"{way} kept"] = with_objective(labelled, previous_epoch, train=train | kept)
        layers = {"hidden_states": {"kind": "mse", "layers": [[0, 0], [-1, -1]]}, "decoder_states": {"kind": "mse"}}
        online = {"epochs": 0.5, "precision": "float16", "optimizer": {"frozen_until": {"encoder": 1.0}}}
        made[f"{way} online"] = with_objective(
            with_online_teacher(labelled), NO_SELF_TEACHER | layers, train=train | online
        )
    return made


def with_online_teacher(labelled: Recipe) -> Recipe:
    """The recipe with an online teacher, and with labels that hold only targets."""
    values = labelled.model_dump(mode="json")
    teacher = {"model": labelled.teacher.model, "online": True}
    recipe = Recipe.model_validate(values | {"name": "online", "teacher": teacher})
    run = Run(recipe)
    shutil.copytree(Run(labelled).path, run.path, dirs_exist_ok=True)
    model, tokens = load_whisper(recipe.teacher.model)
    for shard in shard_paths(run.shards, "train"):
        made = label(model, tokens, to_utterances(read_table(shard)), recipe)
        write_labels(run.labels / shard.name, made, label_key(recipe))
    return recipe


def plain_sgd(student: Any, settings: Any) -> torch.optim.Optimizer:
    """Replaces AdamW, which would hide a wrongly scaled gradient."""
    kept = ("params", "lr", "initial_lr", "name")
    groups = build_optimizer(student, settings).param_groups
    return torch.optim.SGD([{name: group[name] for name in kept} for group in groups])


def run(recipe: Recipe, rank: int, folder: Path, dies_after: int = 999) -> Loop:
    context = DyingContext(CPU, rank, 2)
    context.dies_after = dies_after
    loop = build_loop(recipe, context, folder, "key")
    with suppress(KilledError):
        loop.run()
    return loop


def _rank(rank: int, texts: dict[str, str], root: Path) -> None:
    timeout = timedelta(seconds=120)  # the test fails if it hangs
    dist.init_process_group("gloo", f"file://{root}/ranks", timeout, rank=rank, world_size=2)
    recipes = {name: Recipe.model_validate_json(text) for name, text in texts.items()}
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("askd_ray.train.build.build_optimizer", plain_sgd)
            run(recipes[f"{way} sgd"], rank, root / f"{way} sgd")
        run(recipes[f"{way} online"], rank, root / f"{way} online")
        loop = run(recipes[f"{way} kept"], rank, root / f"{way} kept")
    _note(loop, rank, root)
    run(recipes["fsdp kept"], rank, root / "killed", dies_after=9)
    if rank == 0:
        for name in ("ddp then", "fsdp then"):
            shutil.copytree(root / "killed", root / name)
    dist.barrier()
    for way in WAYS:
        run(recipes[f"{way} kept"], rank, root / f"{way} then")
    dist.destroy_process_group()


def _note(loop: Loop, rank: int, root: Path) -> None:
    """Write the share that a rank holds, and its score on a dev split without utterances for the second rank."""
    student, optimizer, kind = loop.objects.student, loop.objects.optimizer, loop.student_kind
    assert isinstance(student, FSDPModule)
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    shares = [
        sum(t.to_local().numel() for t in tensors) / sum(t.numel() for t in tensors)
        for tensors in (list(student.parameters()), moments, loop.objects.ema.state()[0].values())
    ]
    (clip,) = read_utterances(Run(loop.recipe).shards, "dev")[:1]
    dev = DevClips([clip][rank:], {DevGroup.of(clip): GroupSize(1, clip.duration_s)})
    errors = dev_errors(unsharded(student, kind), kind, dev, DecodingWindow.of(loop.recipe.window), loop.context)
    (root / f"rank-{rank}.json").write_text(
        json.dumps({"shares": shares, "words": errors[DevGroup("", "tones")].n_reference})
    )


@pytest.fixture(scope="module")
def both_ways(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    root = tmp_path_factory.mktemp("parallel")
    texts = {name: recipe.model_dump_json() for name, recipe in recipes(labelled).items()}
    mp.spawn(_rank, (texts, root), nprocs=2)
    return root


def assert_about_the_same(folder: Path, expected: Path, file: str) -> None:
    found, expected_tensors = checkpoint(folder, file), checkpoint(expected, file)
    assert found.keys() == expected_tensors.keys()
    for name, value in expected_tensors.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def assert_same_previous_labels(folder: Path, expected: Path) -> None:
    """Check that both runs kept about the same labels of an epoch, whichever ranks observed them."""
    kept: list[list[CachedLabels]] = []
    for path in (folder, expected):
        parts = LabelParts(path / "self_teacher")
        parts.open(sorted(file.name for file in parts.folder.iterdir()))
        kept.append(parts.find([f"u{i}" for i in range(14)]))
    for found, other in zip(*kept, strict=True):
        torch.testing.assert_close(found.buckets.float(), other.buckets.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.full
@pytest.mark.slow
def test_fsdp_sgd_step_equals_ddp(both_ways: Path, labelled: Recipe):
    """All gradients must be right, also that of the tied embeddings, which are used twice."""
    found, expected = both_ways / "fsdp sgd", both_ways / "ddp sgd"
    ends, start = [checkpoint(folder) for folder in (found, expected)], load_whisper(labelled.teacher.model)[0]
    for name, before in start.state_dict().items():
        change, expected_change = (end[f"whisper.{name}"] - before for end in ends)
        far = expected_change.abs().max()
        assert (change - expected_change).abs().max() <= 1e-3 * far + 2e-7 * before.abs().max(), name
        assert far > 0.0 or name == "model.encoder.embed_positions.weight", name
    for line, expected_line in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert line["loss"] == pytest.approx(expected_line["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected_line["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.full
def test_fsdp_run_equals_ddp(both_ways: Path):
    """With groups that are frozen at first, averaged weights, and gradient checkpointing."""
    for file in ("student", "optimizer", "ema"):
        assert_about_the_same(both_ways / "fsdp kept", both_ways / "ddp kept", file)
    assert_same_previous_labels(both_ways / "fsdp kept", both_ways / "ddp kept")
    best = [load_whisper(str(both_ways / f"{way} kept" / "best"))[0].state_dict() for way in WAYS]
    for name, value in best[0].items():
        torch.testing.assert_close(best[1][name], value, rtol=1e-3, atol=1e-4)
    assert ledger_of(both_ways / "fsdp kept") == ledger_of(both_ways / "ddp kept")


@pytest.mark.slow
@pytest.mark.full
def test_online_teacher_is_sharded(both_ways: Path):
    found, expected = metrics_of(both_ways / "fsdp online"), metrics_of(both_ways / "ddp online")
    assert found[-1]["hidden"] > 0.0 and found[-1]["kd"] > 0.0
    for line, expected_line in zip(found, expected, strict=True):
        for name in ("loss", "kd", "hidden", "grad_norm"):
            assert line[name] == pytest.approx(expected_line[name], rel=1e-2, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.full
def test_each_rank_holds_half_of_weights_moments_and_averages(both_ways: Path):
    for rank in range(2):
        noted = json.loads((both_ways / f"rank-{rank}.json").read_text())
        assert noted["shares"] == pytest.approx([0.5, 0.5, 0.5], abs=0.01)


@pytest.mark.slow
@pytest.mark.full
def test_rank_without_dev_utterances(both_ways: Path):
    words = [json.loads((both_ways / f"rank-{rank}.json").read_text())["words"] for rank in range(2)]
    assert words[0] == words[1] > 0


@pytest.mark.full
@pytest.mark.slow
def test_killed_fsdp_run_resumes_bitwise_and_as_ddp(both_ways: Path, labelled: Recipe):
    """With two workers by fsdp or ddp, and with one worker."""
    whole = both_ways / "fsdp kept"
    (stood,) = (both_ways / "killed" / "checkpoints").iterdir()
    assert stood.name == "step-00000004"
    assert_same_run(both_ways / "fsdp then", whole)
    build_loop(recipes(labelled)["ddp kept"], PlainContext(CPU), both_ways / "killed", "key").run()
    for folder in (both_ways / "ddp then", both_ways / "killed"):
        for file in ("student", "optimizer", "ema"):
            assert_about_the_same(folder, whole, file)
        assert_same_previous_labels(folder, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"workers": {"parallel": "fsdp"}}}, "parallel = 'fsdp' would be ignored: there is one worker"),
        (
            {"objective": {}},
            "self_teacher snapshot copies the student, which train.workers.parallel fsdp shards: use previous",
        ),
        ({"student": {"shrink": [{"at": 0.5, "decoder_layers": [0]}]}}, "student.shrink cannot remove layers later"),
    ],
)
def test_unsupported_settings_with_fsdp_are_refused(changes: dict[str, Any], message: str):
    sharded = {"train": {"workers": {"count": 2, "parallel": "fsdp"}}, "objective": NO_SELF_TEACHER}
    Recipe.model_validate(sharded)
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(sharded | changes)
