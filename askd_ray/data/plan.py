"""Which utterance is in which batch, on which rank, in which epoch: a pure function of (seed, epoch, world size).

Planning needs only durations, so the whole run is known before any audio is read: the number of steps, and where a
resumed run goes on. Utterances are shuffled within windows of a few shards, so that a task reads whole shards in a
row, and grouped by length, so that little of a batch is padding.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from askd_ray.audio.augment import Draw, sped_up_samples, speed_factor
from askd_ray.audio.units import PADDED_SAMPLES, samples_of, window_samples
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window

_POOL = 16  # batches that are cut from one sorted stretch: lengths alike within, any order between


@dataclass(frozen=True)
class Row:
    """One utterance of the train split, by place: what planning knows of it."""

    shard: int
    index: int
    id: str
    duration_s: float


@dataclass(frozen=True)
class Planned:
    """One utterance in a batch: where it lies, and the samples of the window that the encoder sees."""

    shard: int
    index: int
    window_samples: int


@dataclass(frozen=True)
class Task:
    """What one rank takes from one window of shards: its batches in order; a rank without data gets empty ones."""

    epoch: int
    batches: tuple[tuple[Planned, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the task as plain lists, for a Ray Data item."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Task":
        """Return the task of :meth:`to_json`."""
        batches = tuple(tuple(Planned(**p) for p in batch) for batch in value["batches"])
        return cls(value["epoch"], batches)

    def after(self, n_batches: int) -> "Task":
        """Return what is left of the task after its first ``n_batches``."""
        return Task(self.epoch, self.batches[n_batches:])


@dataclass(frozen=True)
class Planner:
    """Plans epochs over the rows of each shard, ``shards[i]`` being those of shard ``i``."""

    shards: tuple[tuple[Row, ...], ...]
    train: Train
    window: Window
    augment: Augment
    seed: int

    def epoch(self, epoch: int, rank: int, world_size: int) -> list[Task]:
        """Return what ``rank`` does in an epoch. All ranks get the same number of batches; each row is in just one."""
        rng = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.shards)))
        rng.shuffle(order)
        tasks: list[Task] = []
        for start in range(0, len(order), self.train.shuffle_shards):
            rows = [row for shard in order[start : start + self.train.shuffle_shards] for row in self.shards[shard]]
            rng.shuffle(rows)
            steps = self._steps(rows, epoch, world_size, rng)
            if steps:
                tasks.append(Task(epoch, tuple(step[rank] for step in steps)))
        return tasks

    def run(self, rank: int, world_size: int) -> list[Task]:
        """Return what ``rank`` does in the whole run; of a last epoch that is a fraction, the first batches."""
        whole = int(self.train.epochs)
        tasks = [task for epoch in range(whole) for task in self.epoch(epoch, rank, world_size)]
        if whole == self.train.epochs:
            return tasks
        last = self.epoch(whole, rank, world_size)
        n_batches = sum(len(task.batches) for task in last)
        return tasks + take(last, max(1, round((self.train.epochs - whole) * n_batches)))

    def _steps(
        self, rows: Sequence[Row], epoch: int, world_size: int, rng: random.Random
    ) -> list[list[tuple[Planned, ...]]]:
        planned = [Planned(r.shard, r.index, self._window(r, epoch)) for r in rows]
        pool = self.train.batch_utterances * world_size * _POOL
        steps: list[list[tuple[Planned, ...]]] = []
        for start in range(0, len(planned), pool):
            batches = self._cut(sorted(planned[start : start + pool], key=lambda p: p.window_samples))
            # Neighbours in length go to the ranks of one step, which then take equally long.
            steps += [
                [batches[i + r] if i + r < len(batches) else () for r in range(world_size)]
                for i in range(0, len(batches), world_size)
            ]
        rng.shuffle(steps)
        return steps

    def _cut(self, planned: Sequence[Planned]) -> list[tuple[Planned, ...]]:
        """Cut rows, sorted by length, into batches bounded by utterances and by padded audio seconds."""
        batches: list[list[Planned]] = []
        for row in planned:
            full = not batches or (
                len(batches[-1]) >= self.train.batch_utterances
                or row.window_samples * (len(batches[-1]) + 1) > samples_of(self.train.batch_audio_s)
            )
            if full:
                batches.append([])
            batches[-1].append(row)
        return [tuple(batch) for batch in batches]

    def _window(self, row: Row, epoch: int) -> int:
        draw = Draw(self.seed, epoch, row.id)
        rng = draw.rng("window")
        if rng.random() < self.window.padded_share:
            return PADDED_SAMPLES
        n_samples = samples_of(row.duration_s)
        n_samples = sped_up_samples(n_samples, speed_factor(self.augment, draw, n_samples))
        return window_samples(n_samples, rng.uniform(*self.window.train_silence_s))


def take(tasks: Sequence[Task], n_batches: int) -> list[Task]:
    """Return a rank's first ``n_batches`` batches, as tasks."""
    taken: list[Task] = []
    for task in tasks:
        if n_batches > 0:
            taken.append(Task(task.epoch, task.batches[:n_batches]))
            n_batches -= len(task.batches)
    return taken


def skip(tasks: Sequence[Task], n_batches: int) -> list[Task]:
    """Return what is left of a rank's tasks after its first ``n_batches`` batches: where a resumed run goes on."""
    left: list[Task] = []
    for task in tasks:
        skipped = min(n_batches, len(task.batches))
        n_batches -= skipped
        if skipped < len(task.batches):
            left.append(task.after(skipped))
    return left
