from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.augment import Draw, speed_factor
from askd_ray.audio.units import PADDED_SAMPLES, samples_of
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.plan import Planner, Row, Task, skip


def planner(lengths: list[float], shard_size: int = 5, augment: Augment | None = None, **train: object) -> Planner:
    rows = [Row(i // shard_size, i % shard_size, f"u{i}", s) for i, s in enumerate(lengths)]
    n_shards = -(-len(rows) // shard_size)
    shards = tuple(tuple(r for r in rows if r.shard == s) for s in range(n_shards))
    settings_ = Train.model_validate(
        {"epochs": 2, "batch_utterances": 4, "batch_audio_s": 35.0, "shuffle_shards": 2} | train
    )
    return Planner(shards, settings_, Window(padded_share=0.1), augment or Augment(), seed=7)


durations = st.lists(st.floats(0.2, 29.0), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(durations, st.integers(1, 4), st.integers(0, 3))
def test_every_utterance_is_in_just_one_batch_of_an_epoch(lengths: list[float], world_size: int, epoch: int):
    plan = planner(lengths)
    tasks = [t for rank in range(world_size) for t in plan.epoch(epoch, rank, world_size)]
    seen = Counter((p.shard, p.index) for t in tasks for batch in t.batches for p in batch)
    assert seen == Counter({(r.shard, r.index): 1 for rows in plan.shards for r in rows})


@settings(max_examples=60, deadline=None)
@given(durations, st.integers(1, 4))
def test_ranks_take_the_same_number_of_steps_within_the_bounds(lengths: list[float], world_size: int):
    plan = planner(lengths)
    per_rank = [plan.run(rank, world_size) for rank in range(world_size)]
    assert len({sum(len(t.batches) for t in tasks) for tasks in per_rank}) == 1
    for batch in (b for tasks in per_rank for t in tasks for b in t.batches if b):
        assert len(batch) <= 4
        longest = max(p.window_samples for p in batch)
        assert longest <= PADDED_SAMPLES
        assert len(batch) == 1 or longest * len(batch) <= samples_of(35.0)


def test_the_plan_is_a_pure_function_and_differs_between_epochs_and_seeds():
    plan = planner([1.0 + i / 10 for i in range(30)])
    assert plan.run(0, 2) == plan.run(0, 2)
    assert plan.epoch(0, 0, 1) != plan.epoch(1, 0, 1)
    other = Planner(plan.shards, plan.train, plan.window, plan.augment, seed=8)
    assert other.epoch(0, 0, 1) != plan.epoch(0, 0, 1)


@settings(max_examples=60, deadline=None)
@given(durations, st.integers(0, 30))
def test_a_resumed_run_takes_just_the_batches_that_are_left(lengths: list[float], done: int):
    tasks = planner(lengths).run(0, 1)
    batches = [b for t in tasks for b in t.batches]
    assert [b for t in skip(tasks, done) for b in t.batches] == batches[done:]


@pytest.mark.parametrize(("epochs", "share"), [(0.5, 0.5), (1.0, 1.0), (2.25, 2.25), (0.001, None)])
def test_a_fraction_of_an_epoch_is_its_first_batches(epochs: float, share: float | None):
    whole = planner([1.0 + i / 10 for i in range(64)], epochs=3).run(0, 1)
    part = planner([1.0 + i / 10 for i in range(64)], epochs=epochs).run(0, 1)
    batches = [b for t in part for b in t.batches]
    assert batches == [b for t in whole for b in t.batches][: len(batches)]
    if share is not None:  # epochs differ a little in their number of batches: windows are drawn anew
        per_epoch = [sum(len(t.batches) for t in whole if t.epoch == e) for e in range(3)]
        rest = share - int(share)
        assert len(batches) == sum(per_epoch[: int(share)]) + round(rest * per_epoch[int(share)])
    else:
        assert len(batches) == 1


def test_tasks_travel_as_json():
    task = planner([1.0, 2.0, 3.0]).run(0, 1)[0]
    assert Task.from_json(task.to_json()) == task


def test_the_window_is_the_clip_and_some_silence_or_thirty_seconds():
    plan = planner([2.0] * 400, shard_size=400, batch_utterances=8)
    windows = [p.window_samples for t in plan.epoch(0, 0, 1) for b in t.batches for p in b]
    trimmed = [w for w in windows if w != PADDED_SAMPLES]
    assert 0.05 < 1 - len(trimmed) / len(windows) < 0.16  # a tenth, as the recipe says
    assert min(trimmed) >= samples_of(2.1) and max(trimmed) <= samples_of(3.02)
    assert len(set(trimmed)) > 20


def test_the_window_is_that_of_the_clip_as_it_is_heard():
    lengths = [2.0] * 40 + [28.0] * 10
    settings_ = Augment(speed=(0.8, 1.25))
    plan = planner(lengths, shard_size=50, augment=settings_, batch_audio_s=1.0)
    windows = {p.index: p.window_samples for t in plan.epoch(0, 0, 1) for b in t.batches for p in b}
    drawn = {r.index: speed_factor(settings_, Draw(7, 0, r.id), samples_of(r.duration_s)) for r in plan.shards[0]}
    assert {drawn[i] for i in range(40)} == {0.8, 1.25}
    assert {drawn[i] for i in range(40, 50)} == {1.0, 1.25}  # slowed down they would be longer than 30 s
    trimmed = {i: w for i, w in windows.items() if w != PADDED_SAMPLES}
    for index, window in trimmed.items():
        heard_s = lengths[index] / drawn[index]
        assert samples_of(heard_s + 0.1) <= window <= samples_of(heard_s + 1.02)
    assert len(trimmed) > 30
