from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed import index_of

from askd_ray.audio.augment import speed_factor
from askd_ray.audio.units import PADDED_SAMPLES, samples_of
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Window
from askd_ray.config.train import Train
from askd_ray.data.length_grouped import LengthGroupedSampler
from askd_ray.data.sampler import DataCursor, Step, batches_per_step, steps_from, tasks_from
from askd_ray.randomness import Draw

START = DataCursor()

MicroBatch = tuple[tuple[int, int, int, int, int, int], ...]  # of the fields of PLANNED


def sampler(
    lengths: list[float], block_rows: int = 5, augment: Augment | None = None, epochs: float = 2, **batching: object
) -> LengthGroupedSampler:
    limits = {"utterances": 4, "audio_s": 35.0, "tokens": 200, "shuffle_blocks": 2}
    settings_ = Train.model_validate({"epochs": epochs, "batching": limits | batching})
    index = index_of(lengths, block_rows)
    return LengthGroupedSampler(index, settings_, Window(padded_share=0.1), augment or Augment(), seed=7)


def batches_of(plan: LengthGroupedSampler, rank: int = 0, world_size: int = 1, cursor: DataCursor = START):
    """A rank's micro-batches by epoch, as tuples."""
    return [
        (task.epoch, tuple(batch.tolist()))
        for task in tasks_from(plan, cursor, rank, world_size)
        for batch in task.batches
    ]


def steps_of(plan: LengthGroupedSampler, cursor: DataCursor = START) -> list[tuple[MicroBatch, ...]]:
    """The run's steps from a cursor on, each with the micro-batches of all queues."""
    n = plan.train.micro_batches_per_step
    return list(zip(*([b for _, b in batches_of(plan, queue, n, cursor)] for queue in range(n)), strict=True))


def numbers(batches: list[MicroBatch]) -> Counter[int]:
    return Counter(row[0] for batch in batches for row in batch)


durations = st.lists(st.floats(0.2, 29.0), min_size=1, max_size=60)
queue_counts = st.integers(1, 4)


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts, st.integers(1, 5))
def test_every_utterance_is_in_one_micro_batch_per_epoch(lengths: list[float], n: int, world_size: int):
    plan = sampler(lengths, micro_batches=n)
    everything = Counter(range(len(lengths)))
    taken = [pair for rank in range(world_size) for pair in batches_of(plan, rank, world_size)]
    for epoch in range(2):
        assert numbers([batch for of_epoch, batch in taken if of_epoch == epoch]) == everything


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts, st.integers(1, 5))
def test_steps_are_independent_of_the_number_of_workers(lengths: list[float], n: int, world_size: int):
    plan = sampler(lengths, micro_batches=n)
    per_step = batches_per_step(plan, world_size)
    ranks = [[batch for _, batch in batches_of(plan, rank, world_size)] for rank in range(world_size)]
    expected = steps_of(plan)
    assert len(expected) == len(list(steps_from(plan, START)))
    for number, step in enumerate(expected):
        taken = [b for rank in ranks for b in rank[number * per_step : (number + 1) * per_step]]
        assert len(taken) == per_step * world_size
        assert Counter(b for b in taken if b) == Counter(b for b in step if b)
    assert all(len(rank) == per_step * len(expected) for rank in ranks)


def test_tasks_know_where_their_blocks_are():
    plan = sampler([1.0 + i / 10 for i in range(30)], micro_batches=2)
    for task in tasks_from(plan, START, 1, 2):
        for batch in task.batches:
            for number, block, row in batch[["number", "block", "row"]].tolist():
                assert (task.blocks[block].shard, row) == (f"train-{number // 5}", number % 5)


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts)
def test_micro_batches_respect_the_limits(lengths: list[float], n: int):
    for batch in (b for step in steps_of(sampler(lengths, micro_batches=n)) for b in step if b):
        assert len(batch) <= 4
        longest, max_tokens = (max(row[field] for row in batch) for field in (4, 5))
        assert longest <= PADDED_SAMPLES
        assert len(batch) == 1 or (longest * len(batch) <= samples_of(35.0) and max_tokens * len(batch) <= 200)


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts)
def test_worker_queues_differ_by_up_to_one_micro_batch(lengths: list[float], n: int):
    plan = sampler(lengths, micro_batches=n)
    groups = groupby(
        zip(steps_from(plan, START), steps_of(plan), strict=True), lambda s: (s[0].next.epoch, s[0].next.group)
    )
    for _, group in groups:
        empty = [sum(not batch for batch in queue) for queue in zip(*(step for _, step in group), strict=True)]
        assert max(empty) <= 1


def test_workers_share_few_blocks():
    plan = sampler([1.0 + i / 100 for i in range(160)], micro_batches=4, epochs=1)
    read = [{row[1] for step in steps_of(plan) for row in step[queue]} for queue in range(4)]
    assert len(set[int]().union(*read)) == 32
    assert sum(map(len, read)) <= 32 + 4 * 3


def test_plan_is_pure_and_differs_between_epochs_and_seeds():
    plan = sampler([1.0 + i / 10 for i in range(30)])
    assert batches_of(plan, 0, 2) == batches_of(plan, 0, 2)
    first, second = ([batch for of_epoch, batch in batches_of(plan) if of_epoch == epoch] for epoch in range(2))
    assert numbers(first) == numbers(second) and first != second
    assert steps_of(replace(plan, seed=8)) != steps_of(plan)


def test_plan_is_independent_of_the_files_record_batches():
    plan = sampler([1.0 + i / 10 for i in range(50)])
    for n_batches in (2, 3, 10):
        assert steps_of(replace(plan, index=index_of([1.0 + i / 10 for i in range(50)], 5, n_batches))) == steps_of(
            plan
        )


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts, st.data())
def test_resumed_run_takes_the_remaining_steps(lengths: list[float], n: int, data: st.DataObject):
    plan = sampler(lengths, micro_batches=n)
    steps, batches = list(steps_from(plan, START)), steps_of(plan)
    done = data.draw(st.integers(1, len(steps)))
    cursor = steps[done - 1].next
    assert list(steps_from(plan, cursor)) == steps[done:]
    assert steps_of(plan, cursor) == batches[done:]


@settings(max_examples=80, deadline=None)
@given(durations, queue_counts, st.floats(0.01, 3.0))
def test_progress_rises_evenly_from_0_to_1(lengths: list[float], n: int, epochs: float):
    steps = list(steps_from(sampler(lengths, micro_batches=n, epochs=epochs), START))
    assert steps[0].begins == 0.0 and steps[-1].ends == pytest.approx(1.0) and steps[-1].begins < 1.0
    for one, two in pairwise(steps):
        assert two.begins > one.begins and two.begins == pytest.approx(one.ends)
    assert {s.epoch for s in steps} == set(range(steps[-1].epoch + 1))


@pytest.mark.parametrize(("epochs", "n_steps"), [(0.5, 8), (1.0, 16), (1.25, 20), (0.001, 1)])
def test_fractional_epoch_takes_the_first_steps(epochs: float, n_steps: int):
    lengths, rough = [1.0 + i / 100 for i in range(64)], Window(padded_share=0.0)
    whole = replace(sampler(lengths, block_rows=64, epochs=3), window=rough)
    part = replace(sampler(lengths, block_rows=64, epochs=epochs), window=rough)
    assert steps_of(part) == steps_of(whole)[:n_steps]
    assert [s.next for s in steps_from(part, START)] == [s.next for s in steps_from(whole, START)][:n_steps]


def test_domain_weights_set_the_frequency():
    plan = sampler([2.0] * 40, epochs=4, domain_weights={"a": 0.25, "b": 2.0})
    taken = Counter[tuple[int, str]]()
    copies = set[tuple[int, int, int]]()
    for epoch, batch in batches_of(plan):
        for number, _, _, copy, _, _ in batch:
            domain = "ab"[number % 2]
            taken[epoch, domain] += 1
            copies.add((epoch if domain == "b" else 0, number, copy))
    assert [taken[epoch, "b"] for epoch in range(4)] == [40] * 4
    assert sum(taken[epoch, "a"] for epoch in range(4)) == 20
    assert max(taken[epoch, "a"] for epoch in range(4)) < 12  # in turn, not all at once
    assert len(copies) == 20 + 4 * 40  # each "a" once in four epochs; of "b" both copies in each


def test_last_progress_equals_the_last_step():
    plan = sampler([1.0 + i / 10 for i in range(30)], epochs=1.5)
    assert plan.last_progress() == list(steps_from(plan, START))[-1].begins


def test_padding_shares():
    plan = sampler([1.0, 0.2, 1.0, 3.0], epochs=1, utterances=4)
    plan = replace(plan, window=Window(train_silence_s=(0.5, 0.5), train_min_s=1.5, padded_share=0.0))
    padding = plan.padding()
    assert padding.audio == pytest.approx(1 - (3 * 1.5 + 3.5) / (4 * 3.5), abs=0.01)
    assert padding.tokens == pytest.approx(1 - (6 + 2 + 6 + 14) / (4 * 14))


def test_window_is_clip_plus_silence_or_30_s():
    plan = sampler([2.0] * 400, block_rows=400, utterances=8, epochs=1)
    windows = [row[4] for step in steps_of(plan) for b in step for row in b]
    trimmed = [w for w in windows if w != PADDED_SAMPLES]
    assert 0.05 < 1 - len(trimmed) / len(windows) < 0.16  # a tenth, as the recipe says
    assert min(trimmed) >= samples_of(2.2) and max(trimmed) <= samples_of(4.52)
    assert len(set(trimmed)) > 20


def test_step_cursor_starts_the_next_step():
    steps = list(steps_from(sampler([2.0] * 40), START))
    assert steps[0] == Step(0, 0.0, steps[1].begins, DataCursor(0, 0, 1))
    assert steps[-1].next.epoch == 1


def test_window_is_that_of_the_augmented_clip():
    lengths = [2.0] * 40 + [28.0] * 10
    settings_ = Augment(speed=(0.8, 1.25))
    plan = sampler(lengths, block_rows=50, augment=settings_, audio_s=1.0, epochs=1)
    windows = {row[0]: row[4] for step in steps_of(plan) for b in step for row in b}
    drawn = {i: speed_factor(settings_, Draw(7, 0, f"u{i}"), samples_of(s)) for i, s in enumerate(lengths)}
    assert {drawn[i] for i in range(40)} == {0.8, 1.25}
    assert {drawn[i] for i in range(40, 50)} == {1.0, 1.25}  # slowed down they would be longer than 30 s
    trimmed = {i: w for i, w in windows.items() if w != PADDED_SAMPLES}
    for index, window in trimmed.items():
        augmented_s = lengths[index] / drawn[index]
        assert samples_of(augmented_s + 0.2) <= window <= samples_of(augmented_s + 2.52)
    assert len(trimmed) > 30
