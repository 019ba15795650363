"""The sampler of every run: which utterance is in which micro-batch is a pure function of (seed, epoch).

A step takes ``micro_batches`` micro-batches, one from each of as many queues. The workers divide the queues, so
the number of workers changes neither the batches nor the gradient. Planning needs only durations and token counts, and
works group by group: a group is a few shards that are shuffled together. Within a group each queue takes neighbouring
shards, so that few shards are read twice, and utterances of similar length share a batch, so that padding is short.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from askd_ray.audio.augment import speed_factor
from askd_ray.audio.effects import sped_up_samples
from askd_ray.audio.units import PADDED_SAMPLES, samples_of, window_samples
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.sampler import DataCursor, MicroBatch, Padding, Planned, ReadTask, Row, SamplerSettings, Step
from askd_ray.randomness import Draw

_POOL_BATCHES = 16  # this many micro-batches' worth of shuffled rows is sorted by length at a time


@dataclass(frozen=True)
class _Group:
    """A few shards of an epoch: queues with the same number of micro-batches. Step ``i`` begins at ``progress[i]``."""

    epoch: int
    number: int
    queues: tuple[tuple[MicroBatch, ...], ...]
    progress: tuple[float, ...]


def length_grouped_sampler(shards: tuple[tuple[Row, ...], ...], settings: SamplerSettings) -> "LengthGroupedSampler":
    """Return the sampler that every run uses: utterances of like length share a micro-batch."""
    return LengthGroupedSampler(shards, settings.train, settings.window, settings.augment, settings.seed)


@dataclass(frozen=True)
class LengthGroupedSampler:
    """The :class:`Sampler` that groups utterances of like length; see the module's description."""

    shards: tuple[tuple[Row, ...], ...]
    train: Train
    window: Window
    augment: Augment
    seed: int

    def steps(self, cursor: DataCursor) -> Iterator[Step]:
        """Yield the steps of the run from a cursor on."""
        for group in self._groups(cursor):
            n_steps = len(group.progress) - 1
            for i in range(cursor.steps if _is_at(group, cursor) else 0, n_steps):
                after = DataCursor(group.epoch, group.number, i + 1)
                yield Step(group.epoch, group.progress[i], group.progress[i + 1], after)

    def tasks(self, cursor: DataCursor, rank: int, world_size: int) -> Iterator[ReadTask]:
        """Yield a rank's tasks from a cursor on: :meth:`batches_per_step` micro-batches for each step, in order."""
        per_step = self.batches_per_step(world_size)
        for group in self._groups(cursor):
            rank_queues = list(group.queues[rank::world_size])
            rank_queues += [((),) * (len(group.progress) - 1)] * (per_step - len(rank_queues))
            first = cursor.steps if _is_at(group, cursor) else 0
            yield ReadTask(
                group.epoch, tuple(batch for step in list(zip(*rank_queues, strict=True))[first:] for batch in step)
            )

    def batches_per_step(self, world_size: int) -> int:
        """Return the number of micro-batches of each rank in a step; for the last ranks some may be empty."""
        return -(-self.train.micro_batches_per_step // world_size)

    def last_progress(self) -> float:
        """Return the progress at which the last step of the run begins."""
        last = DataCursor(math.ceil(self.train.epochs) - 1)
        return max(step.begins for step in self.steps(last))

    def padding(self) -> Padding:
        """Return the share of padding in the run's first group of shards."""
        batches = [batch for queue in next(self._groups(DataCursor())).queues for batch in queue if batch]
        return Padding(*(_padding_share(batches, name) for name in ("window_samples", "n_tokens")))

    def _groups(self, cursor: DataCursor) -> Iterator[_Group]:
        """Yield the groups that have steps, from the group of ``cursor`` to the end of the run."""
        n_rows = sum(len(rows) for rows in self.shards)
        for epoch in range(cursor.epoch, math.ceil(self.train.epochs)):
            rng = random.Random(f"{self.seed}/{epoch}")
            order = list(range(len(self.shards)))
            rng.shuffle(order)
            size, done = self.train.batching.shuffle_shards * self.train.micro_batches_per_step, 0
            for number, start in enumerate(range(0, len(order), size)):
                rows = [row for shard in order[start : start + size] for row in self.shards[shard]]
                begins, done = epoch + done / n_rows, done + len(rows)
                if begins >= self.train.epochs:
                    return
                if (epoch, number) < (cursor.epoch, cursor.group):
                    continue
                rng = random.Random(f"{self.seed}/{epoch}/{number}")
                group = self._group(epoch, number, rows, (begins, epoch + done / n_rows), rng)
                if group.queues[0]:
                    yield group

    def _group(
        self, epoch: int, number: int, rows: Sequence[Row], span: tuple[float, float], rng: random.Random
    ) -> _Group:
        """Plan a group for ``span``, its start and end in epochs; steps after the end of the run are dropped."""
        planned = [p for row in rows for p in self._copies(row, epoch)]
        queues = _balance_queues([self._batches(part, rng) for part in self._split_over_queues(planned)])
        order = list(range(len(queues[0])))
        rng.shuffle(order)
        begins, ends = span
        points = [begins + (ends - begins) * i / max(1, len(order)) for i in range(len(order) + 1)]
        order = [step for step, point in zip(order, points, strict=False) if point < self.train.epochs - 1e-9]
        progress = tuple(min(1.0, point / self.train.epochs) for point in points[: len(order) + 1])
        return _Group(epoch, number, tuple(tuple(queue[i] for i in order) for queue in queues), progress)

    def _copies(self, row: Row, epoch: int) -> list[Planned]:
        """Return as many copies of a row as its domain's weight asks for; 0.3 gives a copy in three of ten epochs."""
        weight = self.train.batching.domain_weights.get(row.domain, 1.0)
        turn = Draw(self.seed, 0, row.id).rng("turn").random() if weight % 1.0 else 0.0
        n_copies = math.floor(turn + weight * (epoch + 1)) - math.floor(turn + weight * epoch)
        return [
            Planned(row.shard, row.index, copy, self._window(row, epoch, copy), row.n_tokens)
            for copy in range(n_copies)
        ]

    def _split_over_queues(self, planned: Sequence[Planned]) -> list[list[Planned]]:
        """Split rows into one consecutive part for each queue; all parts fill about as many micro-batches."""
        micro_batches_per_step = self.train.micro_batches_per_step
        fills = [self._fill(p) for p in planned]
        queue_fill = sum(fills) / micro_batches_per_step or 1.0
        parts: list[list[Planned]] = [[] for _ in range(micro_batches_per_step)]
        filled = 0.0
        for row, fill in zip(planned, fills, strict=True):
            parts[min(micro_batches_per_step - 1, int((filled + fill / 2) / queue_fill))].append(row)
            filled += fill
        return parts

    def _fill(self, row: Planned) -> float:
        """Return the share of a micro-batch that a row fills."""
        limits = self.train.batching
        audio, tokens = row.window_samples / samples_of(limits.audio_s), row.n_tokens / limits.tokens
        return min(1.0, max(1 / limits.utterances, audio, tokens))

    def _batches(self, rows: list[Planned], rng: random.Random) -> list[MicroBatch]:
        rng.shuffle(rows)
        pool = self.train.batching.utterances * _POOL_BATCHES
        batches: list[MicroBatch] = []
        for start in range(0, len(rows), pool):
            batches += self._cut_into_batches(
                sorted(rows[start : start + pool], key=lambda p: (p.window_samples, p.n_tokens))
            )
        return batches

    def _cut_into_batches(self, rows: Sequence[Planned]) -> list[MicroBatch]:
        """Cut rows, sorted by length, into micro-batches within the limits of utterances, padded audio and tokens."""
        limits, batches, max_tokens = self.train.batching, list[list[Planned]](), 0
        for row in rows:
            n = len(batches[-1]) + 1 if batches else 0
            max_tokens = max(max_tokens, row.n_tokens)
            fits = (
                n <= limits.utterances
                and row.window_samples * n <= samples_of(limits.audio_s)
                and max_tokens * n <= limits.tokens
            )
            if not n or not fits:
                batches.append([])
                max_tokens = row.n_tokens
            batches[-1].append(row)
        return [tuple(batch) for batch in batches]

    def _window(self, row: Row, epoch: int, copy: int) -> int:
        draw = Draw(self.seed, epoch, row.id, copy)
        rng = draw.rng("window")
        if rng.random() < self.window.padded_share:
            return PADDED_SAMPLES
        n_samples = samples_of(row.duration_s)
        n_samples = sped_up_samples(n_samples, speed_factor(self.augment, draw, n_samples))
        return window_samples(n_samples, rng.uniform(*self.window.train_silence_s), self.window.train_min_s)


def unknown_domains(weights: Mapping[str, float], shards: Sequence[Sequence[Row]]) -> tuple[list[str], list[str]]:
    """Return the domains that have a weight but no rows, and the domains that have rows."""
    known = {row.domain for rows in shards for row in rows}
    return sorted(set(weights) - known), sorted(known)


def _is_at(group: _Group, cursor: DataCursor) -> bool:
    return (group.epoch, group.number) == (cursor.epoch, cursor.group)


def _balance_queues(queues: list[list[MicroBatch]]) -> list[list[MicroBatch]]:
    """Move micro-batches until queue lengths differ by at most one, then fill up with empty ones."""
    while len(longest := max(queues, key=len)) - len(shortest := min(queues, key=len)) > 1:
        shortest.append(longest.pop())
    n_steps = max(len(queue) for queue in queues)
    return [queue + [()] * (n_steps - len(queue)) for queue in queues]


def _padding_share(batches: Sequence[MicroBatch], name: str) -> float:
    used = sum(getattr(p, name) for batch in batches for p in batch)
    computed = sum(max(getattr(p, name) for p in batch) * len(batch) for batch in batches)
    return 1.0 - used / computed if computed else 0.0
