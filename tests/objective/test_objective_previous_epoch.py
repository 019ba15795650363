from dataclasses import fields
from pathlib import Path

import pytest
import torch

from askd_ray.config.self_teacher import PreviousEpochConfig
from askd_ray.divergence.buckets import to_buckets
from askd_ray.divergence.kinds import forward_kl
from askd_ray.objective.previous_epoch import PreviousEpoch
from askd_ray.objective.schedules import Progress
from askd_ray.objective.tensors import TensorBatch

N_VOCAB = 9
PSKD = PreviousEpochConfig(weight=0.8, schedule="linear", switch=0.0, top_k=4)
LENGTHS = {"a": 3, "b": 1, "c": 2}


def batch(*ids: str) -> TensorBatch:
    unread = {field.name: torch.zeros(0) for field in fields(TensorBatch)}
    return TensorBatch(**unread | {"ids": ids, "lengths": tuple(LENGTHS[i] for i in ids) or (0,)})


def random_log_probs(name: str, epoch: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(10 * epoch + ord(name))
    return torch.log_softmax(torch.randn(LENGTHS[name], N_VOCAB, generator=g), -1)


def observe(self_teacher: PreviousEpoch, epoch: int, *ids: str, chunk: int = 2) -> None:
    log_q = torch.cat([random_log_probs(i, epoch) for i in ids]) if ids else torch.zeros(0, N_VOCAB)
    for start in range(0, max(1, len(log_q)), chunk):
        self_teacher.observe(batch(*ids), slice(start, start + chunk), log_q[start : start + chunk])


def an_epoch(self_teacher: PreviousEpoch, epoch: int, *batches: tuple[str, ...]) -> None:
    for i, ids in enumerate(batches):
        self_teacher.before_step(None, Progress((epoch + i / len(batches)) / 3, epoch, 3))
        observe(self_teacher, epoch, *ids)


def assert_teaches(self_teacher: PreviousEpoch, epoch: int, *ids: str) -> None:
    reference = self_teacher.references(batch(*ids), [None])[0]
    assert reference is not None
    log_p = torch.cat([random_log_probs(i, epoch) for i in ids])
    found = reference.distribution(slice(None), torch.zeros(len(log_p), dtype=torch.long), 1.0)
    assert found.top_ids is not None
    torch.testing.assert_close(found.log_p, to_buckets(log_p, log_p.topk(4, -1).indices), atol=5e-3, rtol=5e-3)
    assert forward_kl(found.log_p, found.of_student(log_p)).abs().max() < 1e-3


def test_an_epoch_teaches_the_next_one(tmp_path: Path):
    self_teacher = PreviousEpoch(PSKD, tmp_path)
    an_epoch(self_teacher, 0, ("a", "b"), ("c",))
    assert self_teacher.references(batch("a"), [None]) == [None]
    self_teacher.before_step(None, Progress(0.34, 1, 3))
    assert_teaches(self_teacher, 0, "c", "a")
    observe(self_teacher, 1, "c", "a")
    assert_teaches(self_teacher, 0, "b", "a", "c")  # distributions of this epoch are used from the next epoch on
    observe(self_teacher, 1, "b")
    self_teacher.before_step(None, Progress(0.67, 2, 3))
    assert_teaches(self_teacher, 1, "b", "c", "a")


def test_in_a_training_in_bfloat16(tmp_path: Path):
    self_teacher = PreviousEpoch(PSKD, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        an_epoch(self_teacher, 0, ("a", "b"), ("c",))
        self_teacher.before_step(None, Progress(0.34, 1, 3))
        assert_teaches(self_teacher, 0, "c", "a")


def test_a_rank_without_data_has_a_reference_of_no_tokens(tmp_path: Path):
    self_teacher = PreviousEpoch(PSKD, tmp_path)
    an_epoch(self_teacher, 0, ("a",), ())
    self_teacher.before_step(None, Progress(0.4, 1, 3))
    reference = self_teacher.references(batch(), [None])[0]
    assert reference is not None
    assert reference.distribution(slice(0, 64), torch.zeros(0, dtype=torch.long), 1.0).log_p.shape == (0, 5)


@pytest.mark.parametrize("kept_in", [0, 1])
def test_it_goes_on_where_it_was_kept(kept_in: int, tmp_path: Path):
    self_teacher, again = PreviousEpoch(PSKD, tmp_path), PreviousEpoch(PSKD, tmp_path)
    if kept_in == 1:
        an_epoch(self_teacher, 0, ("a", "b"), ("c",))
    self_teacher.before_step(None, Progress(kept_in / 3, kept_in, 3))
    observe(self_teacher, kept_in, "a", "c")
    tensors, facts = self_teacher.state()
    again.restore(tensors, facts, None)
    again.before_step(None, Progress(kept_in / 3 + 0.1, kept_in, 3))
    observe(again, kept_in, "b")
    again.before_step(None, Progress((kept_in + 1) / 3, kept_in + 1, 3))
    assert_teaches(again, kept_in, "a", "b", "c")


def test_nothing_is_written_down_that_no_later_epoch_reads(tmp_path: Path):
    late = PreviousEpoch(PSKD.model_copy(update={"switch": 0.7}), tmp_path)
    an_epoch(late, 0, ("a",))  # the switch is in the third epoch, which uses the labels of the second
    assert not list(tmp_path.iterdir()) and late.state()[1]["current"] == []
    an_epoch(late, 1, ("a",))
    assert late.state()[1]["current"] == [f.name for f in tmp_path.iterdir()] != []
    last = PreviousEpoch(PSKD, tmp_path)
    an_epoch(last, 2, ("a",))
    assert last.state()[1]["current"] == []


def test_files_that_no_checkpoint_names_are_deleted(tmp_path: Path):
    self_teacher = PreviousEpoch(PSKD, tmp_path)
    an_epoch(self_teacher, 0, ("a", "b"), ("c",))
    kept = self_teacher.state()
    self_teacher.after_checkpoint()
    self_teacher.before_step(None, Progress(0.4, 1, 3))
    observe(self_teacher, 1, "a")
    self_teacher.state()  # killed before this checkpoint is written
    again = PreviousEpoch(PSKD, tmp_path)
    again.restore(*kept, None)
    again.before_step(None, Progress(0.34, 1, 3))
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(kept[1]["current"])
    assert_teaches(again, 0, "a", "b", "c")
    an_epoch(again, 1, ("a", "b", "c"))
    an_epoch(again, 2, ("a",))
    _, facts = again.state()
    again.after_checkpoint()
    assert [f.name for f in tmp_path.iterdir()] == facts["previous"]
    assert_teaches(again, 1, "c", "b", "a")


def test_the_last_observation_of_an_utterance_counts(tmp_path: Path):
    self_teacher = PreviousEpoch(PSKD, tmp_path)
    for epoch in (0, 1):  # as the copies of an utterance in one epoch
        self_teacher.before_step(None, Progress(0.0, 0, 3))
        observe(self_teacher, epoch, "a", "b")
        self_teacher.state()
    self_teacher.before_step(None, Progress(0.4, 1, 3))
    assert_teaches(self_teacher, 1, "a", "b")
