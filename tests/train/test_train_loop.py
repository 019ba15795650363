import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from extending import example
from killed_run import (
    CPU,
    DyingContext,
    KilledError,
    assert_same_run,
    checkpoint,
    killed,
    ledger_of,
    metrics_of,
)
from small_run import with_objective

from askd_ray.config.presets import CTC_PRESETS
from askd_ray.config.schema import Recipe
from askd_ray.config.train import Train
from askd_ray.data.collate import BatchLoader
from askd_ray.data.sampler import DataCursor, Sampler, Step
from askd_ray.data.schema import Batch
from askd_ray.data.shards import read_utterances
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper
from askd_ray.randomness import utterance_key
from askd_ray.runs import Run
from askd_ray.text.error_rate import ErrorCounts
from askd_ray.train.build import build_loop
from askd_ray.train.checkpoint import TrainState, save_checkpoint
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import DevGroup
from askd_ray.train.loop import is_evaluated
from askd_ray.train.ray_trainer import check_inputs
from askd_ray.train.track import read_metrics


@pytest.fixture(scope="module")
def undisturbed(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    build_loop(labelled, PlainContext(CPU), folder, "key").run()
    return folder


@pytest.mark.parametrize("dies_after", [2, 6, 8])  # before the first checkpoint; after it; after the snapshot's refresh
def test_killed_run_ends_with_the_same_bits(labelled: Recipe, undisturbed: Path, tmp_path: Path, dies_after: int):
    killed(labelled, tmp_path, dies_after)
    build_loop(labelled, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, undisturbed)


def test_injected_sampler_decides_the_order_and_resumes(labelled: Recipe, tmp_path: Path):
    """The one of docs/extending.md: the shortest utterance first, one per step."""
    sampler: Any = example("ShortestFirst")
    short = with_objective(labelled, {"self_teacher": {"kind": "none"}}, train={"checkpoint_steps": 2})
    build_loop(short, PlainContext(CPU), tmp_path / "whole", "key", build_sampler=sampler).run()
    utterances = {u.id: u.duration_s for u in read_utterances(Run(short).shards, "train")}
    trained = [row["id"] for row in sorted(ledger_of(tmp_path / "whole"), key=lambda row: row["step"])]
    assert trained == sorted(utterances, key=lambda id_: (utterances[id_], utterance_key(id_)))
    killed(short, tmp_path / "killed", 5, build_sampler=sampler)
    build_loop(short, PlainContext(CPU), tmp_path / "killed", "key", build_sampler=sampler).run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


# Steps of two micro-batches, with a checkpoint after every other one
EVERYTHING = {
    "epochs": 1.5,
    "checkpoint_steps": 2,
    "precision": "bfloat16",
    "gradient_checkpointing": True,
    "optimizer": {"ema_decay": 0.9, "frozen_until": {"encoder": 0.3, "embeddings": 0.6}, "embedding_lr": 1e-3},
    "batching": {"utterances": 2, "micro_batches": 2, "domain_weights": {"tones": 1.5}},
}


@pytest.fixture(scope="module")
def everything(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """An undisturbed run with everything that a checkpoint has to store."""
    recipe = with_objective(labelled, {"self_teacher": {"kind": "ema", "switch": 0.2}}, train=EVERYTHING)
    folder = tmp_path_factory.mktemp("everything")
    build_loop(recipe, PlainContext(CPU), folder, "key").run()
    return recipe, folder


@pytest.mark.full
@pytest.mark.parametrize("dies_after", [3, 6, 9, 12])
def test_every_setting_resumes_at_any_step(everything: tuple[Recipe, Path], tmp_path: Path, dies_after: int):
    recipe, expected = everything
    killed(recipe, tmp_path, dies_after)
    build_loop(recipe, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, expected)


def test_averaged_weights_are_scored_and_saved(labelled: Recipe, tmp_path: Path):
    recipe = with_objective(labelled, {}, train={"optimizer": {"ema_decay": 0.9}, "epochs": 1})
    build_loop(recipe, PlainContext(CPU), tmp_path, "key").run()
    mean, last = checkpoint(tmp_path, "ema"), checkpoint(tmp_path)
    best = load_whisper(str(tmp_path / "best"))[0].state_dict()
    name = "model.decoder.layers.0.fc1.weight"
    assert torch.equal(best[name], mean[f"whisper.{name}"])
    assert not torch.equal(mean[f"whisper.{name}"], last[f"whisper.{name}"])


def test_frozen_groups_are_trained_from_a_progress_on(labelled: Recipe, tmp_path: Path):
    recipe = with_objective(labelled, {}, train={"optimizer": {"frozen_until": {"encoder": 0.5, "embeddings": 1.0}}})
    killed(recipe, tmp_path, 5)  # after the checkpoint at the end of the first of two epochs
    start = {f"whisper.{n}": p for n, p in load_whisper(recipe.teacher.model)[0].state_dict().items()}
    half = checkpoint(tmp_path)
    build_loop(recipe, PlainContext(CPU), tmp_path, "key").run()
    end = checkpoint(tmp_path)
    for part, moved in (("encoder.conv1", (False, True)), ("embed_tokens", (False, False)), ("fc1", (True, True))):
        name = next(n for n in start if part in n and ("decoder" in n or part == "encoder.conv1"))
        found = tuple(not torch.equal(state[name], start[name]) for state in (half, end))
        assert found == moved, name


def _two_ranks(rank: int, text: str, root: Path, runs: list[tuple[str, int]]) -> None:
    """Run a recipe's loop into each folder until it dies after so many batches."""
    dist.init_process_group("gloo", init_method=f"file://{root}/ranks", rank=rank, world_size=2)
    for folder, dies_after in runs:
        context = DyingContext(CPU, rank, 2)
        context.dies_after = dies_after
        with suppress(KilledError):
            build_loop(Recipe.model_validate_json(text), context, root / folder, "key").run()
    dist.destroy_process_group()


@pytest.mark.full
@pytest.mark.slow
def test_two_killed_workers_end_with_the_same_bits(labelled: Recipe, tmp_path: Path):
    """One worker that resumes their run ends with the same student, except for rounding, and the same ledger."""
    batching = {"utterances": 2, "micro_batches": 2}
    recipe = with_objective(labelled, {}, train={"batching": batching, "checkpoint_steps": 2})
    runs = [("whole", 99), ("killed", 3), ("handed_over", 3), ("killed", 99)]
    mp.spawn(_two_ranks, (recipe.model_dump_json(), tmp_path, runs), nprocs=2)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    summary = build_loop(recipe, PlainContext(CPU), tmp_path / "handed_over", "key").run()
    assert summary["workers"] == 1 and summary["utterances"]["steps_of"] == {"trained": 28}
    assert ledger_of(tmp_path / "handed_over") == ledger_of(tmp_path / "whole")
    for name, value in checkpoint(tmp_path / "whole").items():
        torch.testing.assert_close(checkpoint(tmp_path / "handed_over")[name], value, rtol=1e-3, atol=1e-4)


def _late_rank(rank: int, text: str, folders: tuple[str, str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folders[0]}.ranks", rank=rank, world_size=2)
    build_loop(Recipe.model_validate_json(text), PlainContext(CPU, rank, 2), Path(folders[rank]), "key")


@pytest.mark.full
@pytest.mark.slow
def test_ranks_with_different_checkpoints_stop(labelled: Recipe, tmp_path: Path):
    """As on a shared folder where one machine sees new files later than another."""
    killed(labelled, tmp_path / "seen", 6)
    folders = str(tmp_path / "seen"), str(tmp_path)
    with pytest.raises(mp.ProcessRaisedException, match=r"checkpoints of different steps: \[5, 0\]"):
        mp.spawn(_late_rank, (labelled.model_dump_json(), folders), nprocs=2)


def test_half_written_files_of_a_killed_process_are_removed(labelled: Recipe, tmp_path: Path):
    leftovers = [
        tmp_path / "checkpoints" / ".step-00000005.0a1b2c3d.tmp",
        tmp_path / ".best-step-00000005.0a1b2c3d.tmp",
    ]
    for folder in leftovers:
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_bytes(b"half")
    killed(labelled, tmp_path, 6)
    assert [path for path in leftovers if path.exists()] == []


OBJECTIVES: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in ("adakd", "pskd", "askd_gap")},
    **{kind: {"self_teacher": {"kind": kind, "switch": 0.3}} for kind in ("ema", "best")},
    **{s: {"teacher_weight": {"schedule": s}} for s in ("polynomial", "step", "sigmoid", "exponential", "cosine")},
    "reverse_kl": {"divergence": {"kind": "reverse_kl"}, "self_teacher": {"schedule": "linear", "switch": 0.2}},
    "gate": {"trust_gate": {"kind": "hard"}, "divergence": {"kind": "jsd"}},
    "states": {"preset": "askd_window", "states_weight": {"schedule": "gap"}, "self_teacher": {"switch": 0.3}},
    **{preset: {"preset": preset} for preset in CTC_PRESETS},
    **{compressor: {"preset": "askd", "self_teacher": {"switch": 0.3}} for compressor in ("pooling", "hfq")},
    "hybrid": {"preset": "askd", "self_teacher": {"switch": 0.3}, "intermediate": {"kind": "ctc", "self_kd": True}},
}


@pytest.mark.full
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_schedule_and_self_teacher_resumes_exactly(
    labelled: Recipe, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """Killed in the middle of the second epoch, with a checkpoint in each: the gap needs few steps to move here."""
    monkeypatch.setattr("askd_ray.objective.schedules.Gap.FIRST_STEPS", 2)
    reader = "hybrid" if name == "hybrid" else "ctc" if name in CTC_PRESETS else "whisper"
    compressor = {"kind": name, "rate": 12.5} if name in ("pooling", "hfq") else {"kind": "none"}
    student = {"reader": reader, "compressor": compressor}
    sections = {"train": {"evals_per_epoch": 2}, "targets": {"states": "all"}, "student": student}
    recipe = with_objective(labelled, OBJECTIVES[name], **sections)
    build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key").run()
    killed(recipe, tmp_path / "killed", 9)
    build_loop(recipe, PlainContext(CPU), tmp_path / "killed", "key").run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    metrics = metrics_of(tmp_path / "whole")
    if recipe.objective.has_self_teacher and name != "best":
        assert metrics[-1]["self_kd"] > 0.0
    if recipe.objective.has_teacher:
        # At the first step the student equals the teacher, so kd is 0; it is positive from the second step on.
        assert metrics[1]["kd"] > 1e-6 and metrics[0]["teacher_ce"] > 0.0


def test_training_lowers_the_loss_and_keeps_the_best_student(labelled: Recipe, undisturbed: Path):
    metrics = read_metrics(undisturbed)
    assert metrics[-1]["ce"] < 0.95 * metrics[0]["ce"]
    assert metrics[0]["b"] == 0.0 and metrics[-1]["b"] == 0.15
    assert metrics[-1]["self_kd"] > 0.0
    student, tokens = load_whisper(str(undisturbed / "best"))
    assert student.config.decoder_layers == 2 and tokens.end == 50256
    assert list((undisturbed / "tensorboard").iterdir())


def test_every_utterance_is_seen_once_an_epoch(labelled: Recipe, tmp_path: Path):
    seen: list[str] = []

    class Recording(PlainContext):
        def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
            for batch in super().batches(loader, sampler, cursor):
                seen.extend(batch.ids)
                yield batch

    summary = build_loop(labelled, Recording(CPU), tmp_path, "key").run()
    assert sorted(seen) == sorted([f"u{i}" for i in range(14)] * 2)
    assert sorted(str(row["id"]) for row in ledger_of(tmp_path)) == sorted(seen)
    counts = {"read": 14, "trained": 14, "not_reached": 0, "unaccounted": 0, "steps_of": {"trained": 28}}
    assert summary["utterances"] == counts


@pytest.mark.full
def test_early_stopping(labelled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates = iter((5, 4, 4, 6))
    monkeypatch.setattr(
        "askd_ray.train.loop.dev_errors", lambda *_: {DevGroup("", "tones"): ErrorCounts(next(rates), 0, 0, 10)}
    )
    recipe = with_objective(labelled, {}, train={"epochs": 9, "patience": 2})
    summary = build_loop(recipe, PlainContext(CPU), tmp_path, "key").run()
    assert (summary["stopped"], summary["best_step"], summary["steps"]) == ("patience", 10, 20)
    assert build_loop(recipe, PlainContext(CPU), tmp_path, "key").run() == summary  # an ended run does not continue


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "n_steps", "expected"),
    [(2, 1, 14, [7, 14]), (2, 2, 14, [4, 7, 11, 14]), (1, 3, 1, [1]), (0.3, 1, 4, [4]), (1.5, 1, 6, [4, 6])],
)
def test_evaluations_within_and_at_the_end_of_epochs(epochs: float, per_epoch: int, n_steps: int, expected: list[int]):
    train = Train.model_validate({"epochs": epochs, "evals_per_epoch": per_epoch})
    steps = [Step(0, i / n_steps, (i + 1) / n_steps, DataCursor()) for i in range(n_steps)]
    assert [i + 1 for i, step in enumerate(steps) if is_evaluated(step, train)] == expected


def test_stale_labels_are_refused(labelled: Recipe):
    fewer = with_objective(labelled, {}, teacher={"top_k": 3})
    with pytest.raises(AskdError, match=r"stale soft labels .*top_k \d+, the recipe asks for 3.*askd label"):
        check_inputs(fewer)


def test_labels_of_each_temperature_have_a_folder(labelled: Recipe):
    hotter = with_objective(labelled, {"temperature": {"start": 2.0}})
    with pytest.raises(AskdError, match=r"labels-t2/train-.* does not exist: run `askd label` first"):
        check_inputs(hotter)


@pytest.mark.parametrize("part", ["noise", "reverb"])
def test_missing_sound_files_are_refused(labelled: Recipe, tmp_path: Path, part: str):
    """Before training starts, not in a worker that reads the first batch."""
    augmentation = {part: {"share": 0.5, "files": str(tmp_path / "gone" / "*.wav")}}
    recipe = Recipe.model_validate({**labelled.model_dump(), "augment": augmentation})
    with pytest.raises(AskdError, match=rf"augment\.{part}\.files = .*gone/\*\.wav' matches no file"):
        check_inputs(recipe)


def test_labels_of_other_utterances_are_refused(copy_of_run: Callable[[], Recipe]):
    recipe = copy_of_run()
    first, second = Run(recipe).shards.files("train-*")
    first.write_bytes(second.read_bytes())
    with pytest.raises(AskdError, match=r"train-00000-of-00002\.parquet has other utterances now"):
        check_inputs(recipe)


def test_missing_labels_are_refused(copy_of_run: Callable[[], Recipe]):
    recipe = copy_of_run()
    Run(recipe).labels.files("train-*")[0].delete()
    with pytest.raises(AskdError, match="run `askd label` first"):
        check_inputs(recipe)


def test_truncated_shard_is_named(copy_of_run: Callable[[], Recipe], tmp_path: Path):
    recipe = copy_of_run()
    shard = Run(recipe).shards.files("train-*")[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(AskdError, match=f"{shard.name} is damaged"):
        check_inputs(recipe)


def test_not_finite_loss_stops_with_ids_and_an_unchanged_model(labelled: Recipe, tmp_path: Path):
    class Poisoned(PlainContext):
        def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
            for batch in super().batches(loader, sampler, cursor):
                batch.log_mel[:] = float("nan")
                yield batch

    loop = build_loop(labelled, Poisoned(CPU), tmp_path, "key")
    before = {n: p.clone() for n, p in loop.objects.student.named_parameters()}
    with pytest.raises(AskdError, match=r"step of u\d+.*not finite"):
        loop.run()
    assert all(torch.equal(p, before[n]) for n, p in loop.objects.student.named_parameters())


def test_not_finite_step_is_skipped_and_counted(labelled: Recipe, tmp_path: Path):
    class Poisoned(PlainContext):
        def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
            for number, batch in enumerate(super().batches(loader, sampler, cursor)):
                if number == 2:
                    batch.log_mel[:] = float("nan")
                yield batch

    recipe = with_objective(labelled, {}, train={"epochs": 1, "not_finite": "skip"})
    summary = build_loop(recipe, Poisoned(CPU), tmp_path, "key").run()
    counts = summary["utterances"]
    skipped = {str(row["id"]) for row in ledger_of(tmp_path) if row["outcome"] == "skipped: not finite"}
    assert {row["step"] for row in ledger_of(tmp_path) if row["id"] in skipped} == {3}
    assert counts["steps_of"] == {"trained": 14 - len(skipped), "skipped: not finite": len(skipped)}
    assert (counts["trained"], counts["not_reached"]) == (14 - len(skipped), len(skipped)) and skipped
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path).values())


def test_full_disk_keeps_the_previous_checkpoint(
    labelled: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A limit on the file size makes a real write of the second checkpoint fail, as on a full disk."""
    loop, written = build_loop(labelled, PlainContext(CPU), tmp_path, "key"), list[int]()

    def save(folder: Path, train_state: TrainState, *rest: Any) -> None:
        written.append(train_state.step)
        limit = resource.RLIM_INFINITY if len(written) == 1 else 100_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        save_checkpoint(folder, train_state, *rest)

    monkeypatch.setattr("askd_ray.train.loop.save_checkpoint", save)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(
            AskdError, match=r"cannot write checkpoint .*step-00000010 .*the previous checkpoint is intact"
        ):
            loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    monkeypatch.undo()
    build_loop(labelled, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, undisturbed)


def test_damaged_checkpoint_is_named(labelled: Recipe, undisturbed: Path, tmp_path: Path):
    (source,) = (undisturbed / "checkpoints").glob("step-*")
    target = tmp_path / "checkpoints" / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    assert json.loads((target / "state.json").read_text())["step"] > 0
    with pytest.raises(AskdError, match="is damaged"):
        build_loop(labelled, PlainContext(CPU), tmp_path, "key")
