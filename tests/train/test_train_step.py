"""Gradients with plain SGD: what two ranks do together is what one does with all the data."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from askd_ray.config.schema import Recipe, SelfTeacher
from askd_ray.data.collate import empty_batch, from_bytes, to_bytes
from askd_ray.data.schema import Batch
from askd_ray.distill.self_teacher import Snapshot
from askd_ray.models.load import load_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.train.loop import make_stream
from askd_ray.train.step import StepResult, train_step

WEIGHTS = (0.5, 0.2)


def a_batch(recipe: Recipe) -> Batch:
    stream = make_stream(recipe, 80)
    return next(b for t in stream.planner().run(0, 1) for b in stream.batches(t) if len(b.ids) == 3)


def rows(batch: Batch, keep: slice) -> Batch:
    arrays = {name: value[keep] for name, value in vars(batch).items() if name != "ids"}
    return Batch(ids=batch.ids[keep], **arrays)


def step(network: torch.nn.Module, student: WindowedWhisper, batch: Batch) -> StepResult:
    snapshot = Snapshot(SelfTeacher(switch=0.0))
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher.whisper.model.decoder.layers[0].fc1.weight.mul_(1.5)
    snapshot.update(teacher, 0.0)
    return train_step(network, torch.optim.SGD(student.parameters(), lr=0.1), batch, snapshot, WEIGHTS, 1.0, 1e9)


def _rank(rank: int, port: int, model: str, batches: list[bytes], out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    student = WindowedWhisper(load_whisper(model)[0])
    result = step(DistributedDataParallel(student), student, from_bytes(batches[rank]))
    torch.save((result.loss, dict(student.named_parameters())), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def two_ranks(
    tiny_model: Path, batches: list[Batch], out: Path, port: int
) -> list[tuple[float, dict[str, torch.Tensor]]]:
    mp.spawn(_rank, (port, str(tiny_model), [to_bytes(b) for b in batches], str(out)), nprocs=2)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
def test_two_ranks_equal_one(labelled: Recipe, tiny_model: Path, tmp_path: Path, empty: bool, unused_port: int):
    batch = a_batch(labelled)
    parts = [batch, empty_batch(80, 4)] if empty else [rows(batch, slice(0, 1)), rows(batch, slice(1, 3))]
    student = WindowedWhisper(load_whisper(str(tiny_model))[0])
    alone = step(student, student, batch)
    for loss, parameters in two_ranks(tiny_model, parts, tmp_path, unused_port):
        assert loss == pytest.approx(alone.loss, rel=1e-5)
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(parameters[name], parameter, atol=1e-6, rtol=1e-4)


def test_a_batch_survives_its_journey(labelled: Recipe):
    batch = a_batch(labelled)
    again = from_bytes(to_bytes(batch))
    assert again.ids == batch.ids
    for name, value in vars(batch).items():
        if name != "ids":
            np.testing.assert_array_equal(getattr(again, name), value)
            assert getattr(again, name).dtype == value.dtype


def test_targets_follow_the_prompt(labelled: Recipe):
    batch = a_batch(labelled)
    sot, notimestamps, end = 50257, 50362, 50256
    for ids, targets in zip(batch.decoder_ids, batch.targets, strict=True):
        text = [t for t in targets if t != -100]
        assert ids[:2].tolist() == [sot, notimestamps]
        assert targets[0] == -100 and text[-1] == end
        assert ids[2 : 1 + len(text)].tolist() == text[:-1]
    mass = np.exp(batch.top_log_probs).sum(-1) + np.exp(batch.rest_log_prob)
    np.testing.assert_allclose(mass[batch.targets != -100], 1.0, atol=5e-3)
