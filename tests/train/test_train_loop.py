import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import CPU, assert_same_run, killed, metrics_of
from small_run import with_objective

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import Stream
from askd_ray.data.plan import Task
from askd_ray.data.schema import Batch
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.train.context import PlainContext
from askd_ray.train.loop import Loop, evaluation_steps
from askd_ray.train.ray_trainer import check_inputs
from askd_ray.train.track import read_metrics


@pytest.fixture(scope="module")
def undisturbed(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Loop(labelled, PlainContext(CPU), folder, "key").run()
    return folder


@pytest.mark.parametrize("dies_after", [2, 6, 8])  # before the first checkpoint; after it; after the snapshot's refresh
def test_a_killed_run_ends_with_the_same_bits(labelled: Recipe, undisturbed: Path, tmp_path: Path, dies_after: int):
    killed(labelled, tmp_path, dies_after)
    Loop(labelled, PlainContext(CPU), tmp_path, "key").run()
    assert_same_run(tmp_path, undisturbed)


OBJECTIVES: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in ("adakd", "pskd", "askd_gap")},
    **{kind: {"self_teacher": {"kind": kind, "switch": 0.3}} for kind in ("ema", "best")},
    **{s: {"teacher_weight": {"schedule": s}} for s in ("polynomial", "step", "sigmoid", "exponential", "cosine")},
    "reverse_kl": {"divergence": {"kind": "reverse_kl"}, "self_teacher": {"schedule": "linear", "switch": 0.2}},
    "gate": {"trust_gate": {"kind": "hard"}, "divergence": {"kind": "jsd"}},
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_schedule_and_self_teacher_resumes_exactly(
    labelled: Recipe, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """Killed in the middle of the second epoch, with a checkpoint in each: the gap needs few steps to move here."""
    monkeypatch.setattr("askd_ray.distill.schedules.Gap.FIRST_STEPS", 2)
    recipe = with_objective(labelled, OBJECTIVES[name], train={"evals_per_epoch": 2})
    Loop(recipe, PlainContext(CPU), tmp_path / "whole", "key").run()
    killed(recipe, tmp_path / "killed", 9)
    Loop(recipe, PlainContext(CPU), tmp_path / "killed", "key").run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    metrics = metrics_of(tmp_path / "whole")
    if recipe.objective.has_self_teacher and name != "best":
        assert metrics[-1]["self_kd"] > 0.0
    if recipe.objective.has_teacher:
        # Before the first step the student is the teacher: only from then on is there something to distil.
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
        def batches(self, stream: Stream, tasks: Sequence[Task]) -> Iterator[Batch]:
            for batch in super().batches(stream, tasks):
                seen.extend(batch.ids)
                yield batch

    Loop(labelled, Recording(CPU), tmp_path, "key").run()
    assert sorted(seen) == sorted([f"u{i}" for i in range(14)] * 2)


def test_evaluations_lie_within_and_at_the_end_of_epochs():
    tasks = [Task(0, ((),) * 4), Task(0, ((),) * 3), Task(1, ((),) * 6)]
    assert evaluation_steps(tasks, 1) == [7, 13]
    assert evaluation_steps(tasks, 2) == [4, 7, 10, 13]
    assert evaluation_steps([Task(0, ((),))], 3) == [1]


def test_stale_labels_are_refused(labelled: Recipe):
    hotter = with_objective(labelled, {"temperature": {"start": 2.0}})
    with pytest.raises(AskdError, match=r"stale soft labels .*temperature 1\.0, the recipe asks for 2\.0.*askd label"):
        check_inputs(hotter)


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


def test_a_truncated_shard_is_named(copy_of_run: Callable[[], Recipe], tmp_path: Path):
    recipe = copy_of_run()
    shard = Run(recipe).shards.files("train-*")[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(AskdError, match=f"{shard.name} is damaged"):
        check_inputs(recipe)


def test_a_loss_that_is_not_finite_stops_with_the_ids_and_leaves_the_model_alone(labelled: Recipe, tmp_path: Path):
    class Poisoned(PlainContext):
        def batches(self, stream: Stream, tasks: Sequence[Task]) -> Iterator[Batch]:
            for batch in super().batches(stream, tasks):
                batch.log_mel[:] = float("nan")
                yield batch

    loop = Loop(labelled, Poisoned(CPU), tmp_path, "key")
    before = {n: p.clone() for n, p in loop.model.named_parameters()}
    with pytest.raises(AskdError, match=r"batch of u\d+.*not finite"):
        loop.run()
    assert all(torch.equal(p, before[n]) for n, p in loop.model.named_parameters())


def test_a_damaged_checkpoint_is_named(labelled: Recipe, undisturbed: Path, tmp_path: Path):
    (source,) = (undisturbed / "checkpoints").glob("step-*")
    target = tmp_path / "checkpoints" / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    assert json.loads((target / "state.json").read_text())["step"] > 0
    with pytest.raises(AskdError, match="is damaged"):
        Loop(labelled, PlainContext(CPU), tmp_path, "key")
