"""The sampler of every run: which utterance is in which micro-batch is a pure function of (seed, epoch).

A step takes ``micro_batches`` micro-batches, one from each of as many queues. The workers divide the queues, so
the number of workers changes neither the batches nor the gradient. Planning needs only durations and token counts, and
works group by group: a group is a few blocks that are shuffled together. Within a group each queue takes neighbouring
blocks, so that few blocks are read twice, and utterances of similar length share a batch, so that padding is short.

A run may have half a billion utterances, so a group is planned with operations on whole arrays.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.augment import speed_factors
from askd_ray.audio.effects import sped_up_samples
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLES_PER_POSITION, samples_of, windows_samples
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.row_index import RowIndex, Rows
from askd_ray.data.sampler import DataCursor, Group, MicroBatch, Padding, Queue, SamplerSettings, planned
from askd_ray.randomness import hashes, uniforms

_MAX_TOKENS = 1_023  # of an utterance; Whisper's decoder has 448 positions
_POOL_BATCHES = 16  # this many micro-batches' worth of shuffled rows is sorted by length at a time

Ints = NDArray[np.int64]


def length_grouped_sampler(index: RowIndex, settings: SamplerSettings) -> "LengthGroupedSampler":
    """Return the sampler that every run uses: utterances of like length share a micro-batch."""
    return LengthGroupedSampler(index, settings.train, settings.window, settings.augment, settings.seed)


@dataclass(frozen=True)
class LengthGroupedSampler:
    """The :class:`~askd_ray.data.sampler.Sampler` that groups utterances of like length; see the module."""

    index: RowIndex
    train: Train
    window: Window
    augment: Augment
    seed: int

    @property
    def n_queues(self) -> int:
        """The number of micro-batches in a step."""
        return self.train.micro_batches_per_step

    def groups(self, cursor: DataCursor) -> Iterator[Group]:
        """Yield the groups that have steps, from the group of ``cursor`` to the end of the run."""
        for epoch in range(cursor.epoch, math.ceil(self.train.epochs)):
            first = cursor.group if epoch == cursor.epoch else 0
            for number, blocks, span in self._spans(epoch, first):
                group = self._group(epoch, number, self.index.rows(blocks), span)
                if group.n_steps:
                    yield group

    def last_progress(self) -> float:
        """Return the progress at which the last step of the run begins."""
        epoch = math.ceil(self.train.epochs) - 1
        for number, blocks, span in reversed(list(self._spans(epoch))):
            group = self._group(epoch, number, self.index.rows(blocks), span)
            if group.n_steps:
                return float(group.progress[-2])
        return 0.0

    def padding(self) -> Padding:
        """Return the share of padding in the run's first group."""
        queues = next(self.groups(DataCursor())).queues
        return Padding(*(_padding_share(queues, name) for name in ("window_samples", "n_tokens")))

    def _spans(self, epoch: int, first: int = 0) -> Iterator[tuple[int, Ints, tuple[float, float]]]:
        """Yield the number of each group, its blocks, and its start and end in epochs, up to the end of the run."""
        order = _block_order(self.index.n_blocks, self.seed, epoch)
        starts, size = self.index.starts, self.train.batching.shuffle_blocks * self.n_queues
        n_before = np.concatenate([[0], np.cumsum(starts[order + 1] - starts[order])])
        for number in range(first, -(-len(order) // size)):
            blocks = order[number * size : (number + 1) * size]
            done = n_before[[number * size, number * size + len(blocks)]] / self.index.n_rows
            if epoch + done[0] >= self.train.epochs:
                return
            yield number, blocks, (epoch + float(done[0]), epoch + float(done[1]))

    def _group(self, epoch: int, number: int, rows: Rows, span: tuple[float, float]) -> Group:
        """Plan a group for ``span``, its start and end in epochs; steps after the end of the run are dropped."""
        rows, copies = self._with_copies(rows, epoch)
        windows = self._windows(rows, copies, epoch)
        queues = self._queues_of(windows, rows.tokens)
        order = self._sorted_in_pools(rows, copies, windows, queues, epoch)
        batch_starts, queue_of_batch = self._cut_into_batches(windows[order], rows.tokens[order], queues[order])
        places = _balanced(queue_of_batch, self.n_queues)
        n_steps = places.shape[1]
        keys = np.arange(n_steps, dtype=np.uint64)
        step_order = np.argsort(hashes(keys, self.seed, epoch, f"steps of {number}"), kind="stable")
        begins, ends = span
        points = begins + (ends - begins) * np.arange(n_steps + 1) / max(1, n_steps)
        n_kept = int((points[:n_steps] < self.train.epochs - 1e-9).sum())
        progress = np.minimum(1.0, points[: n_kept + 1] / self.train.epochs)
        table = planned(rows, windows, copies)[order]
        return Group(epoch, number, _queues(table, batch_starts, places[:, step_order[:n_kept]]), progress)

    def _with_copies(self, rows: Rows, epoch: int) -> tuple[Rows, Ints]:
        """Repeat rows as often as their domain's weight asks for; 0.3 gives a copy in three of ten epochs.

        Returns the rows and the number of each one's copy.
        """
        given = self.train.batching.domain_weights
        if not given:
            return rows, np.zeros(len(rows.number), np.int64)
        weights = np.array([given.get(name, 1.0) for name in self.index.domains])[rows.domain]
        turns = np.where(weights % 1.0, uniforms(rows.key, self.seed, 0, "turn"), 0.0)
        n_copies = np.floor(turns + weights * (epoch + 1)) - np.floor(turns + weights * epoch)
        n_copies = n_copies.astype(np.int64)
        repeated: list[NDArray[Any]] = [np.repeat(column, n_copies) for column in rows]
        return Rows(*repeated), np.arange(n_copies.sum()) - np.repeat(np.cumsum(n_copies) - n_copies, n_copies)

    def _windows(self, rows: Rows, copies: Ints, epoch: int) -> Ints:
        """Return the length of each row's window in samples."""
        n_samples = rows.samples.astype(np.int64)
        if self.augment.changes_speed:
            draws = uniforms(rows.key, self.seed, epoch, "speed", copies)
            n_samples = sped_up_samples(n_samples, speed_factors(self.augment, draws, n_samples))
        low, high = self.window.train_silence_s
        silence_s = low + (high - low) * uniforms(rows.key, self.seed, epoch, "silence", copies)
        windows = windows_samples(n_samples, silence_s, self.window.train_min_s)
        is_padded = uniforms(rows.key, self.seed, epoch, "padded", copies) < self.window.padded_share
        return np.where(is_padded, PADDED_SAMPLES, windows)

    def _queues_of(self, windows: Ints, tokens: NDArray[np.uint16]) -> Ints:
        """Return each row's queue: consecutive rows share one, and all queues fill about as many micro-batches."""
        limits = self.train.batching
        audio, of_tokens = windows / samples_of(limits.audio_s), tokens / limits.tokens
        fills = np.minimum(1.0, np.maximum(1 / limits.utterances, np.maximum(audio, of_tokens)))
        middle = np.cumsum(fills) - fills / 2
        queue_fill = fills.sum() / self.n_queues or 1.0
        return np.minimum(self.n_queues - 1, (middle / queue_fill).astype(np.int64))

    def _sorted_in_pools(self, rows: Rows, copies: Ints, windows: Ints, queues: Ints, epoch: int) -> Ints:
        """Return the order of the rows: those of a queue are shuffled, and then sorted by length in each pool."""
        of_rows = hashes(rows.key, self.seed, epoch, "shuffle", copies)
        shuffled = _order((queues, self.n_queues), (of_rows >> np.uint64(32), 1 << 32))
        starts = np.searchsorted(queues, np.arange(self.n_queues))  # rows are sorted by queue
        pools = (np.arange(len(queues)) - starts[queues]) // self._pool_rows
        is_first = np.diff(pools, prepend=-1) != 0
        is_first[starts[starts < len(queues)]] = True
        positions = windows[shuffled] // SAMPLES_PER_POSITION
        within = _order(
            (np.cumsum(is_first), len(queues) + 1),
            (positions, PADDED_SAMPLES // SAMPLES_PER_POSITION + 1),
            (rows.tokens[shuffled], _MAX_TOKENS + 1),
        )
        return shuffled[within]

    @property
    def _pool_rows(self) -> int:
        return self.train.batching.utterances * _POOL_BATCHES

    def _cut_into_batches(self, windows: Ints, tokens: NDArray[np.uint16], queues: Ints) -> tuple[Ints, Ints]:
        """Cut sorted rows into micro-batches within the limits of utterances, padded audio and tokens.

        Returns the first row of each micro-batch, with the end of the last one, and each one's queue.
        """
        n = len(windows)
        queue_starts = np.searchsorted(queues, np.arange(self.n_queues + 1))
        at = np.arange(n) - queue_starts[queues]
        pool_ends = np.arange(n) - at % self._pool_rows + self._pool_rows
        pool_ends = np.minimum(pool_ends, queue_starts[queues + 1])
        lengths = self._batch_lengths(windows, tokens.astype(np.int64), pool_ends).tolist()
        starts: list[int] = []
        start = 0
        while start < n:
            starts.append(start)
            start += lengths[start]
        return np.array([*starts, n]), queues[starts] if starts else queues[:0]

    def _batch_lengths(self, windows: Ints, tokens: Ints, ends: Ints) -> Ints:
        """Return for every row how many rows a micro-batch holds that begins there; rows before ``ends`` are sorted.

        A row that exceeds a limit alone is a micro-batch. More rows never fit where fewer do not, so each length is
        found bit by bit, from the highest on; ``widest[k]`` has the maximum of the next ``2^k`` token counts.
        """
        limits, starts = self.train.batching, np.arange(len(windows))
        n_bits = limits.utterances.bit_length()
        widest = [tokens]
        for k in range(n_bits - 1):
            shifted = np.concatenate([widest[k][1 << k :], np.zeros(min(1 << k, len(tokens)), np.int64)])
            widest.append(np.maximum(widest[k], shifted))
        lengths, max_tokens = np.zeros_like(starts), np.zeros_like(starts)
        for k in reversed(range(n_bits)):
            longer, last = lengths + (1 << k), starts + lengths + (1 << k) - 1
            inside = (last < ends) & (longer <= limits.utterances)
            last = np.where(inside, last, starts)
            following = np.minimum(starts + lengths, len(tokens) - 1)
            wider = np.maximum(max_tokens, widest[k][following])
            fits = inside & (windows[last] * longer <= samples_of(limits.audio_s)) & (wider * longer <= limits.tokens)
            lengths, max_tokens = np.where(fits, longer, lengths), np.where(fits, wider, max_tokens)
        return np.maximum(1, lengths)


def _order(*keys: tuple[NDArray[Any], int]) -> Ints:
    """Return the order that sorts rows by keys, the first one first; equal rows stay in their order.

    Each key comes with the number of its values. Keys and row are packed into one number, which sorts ten times as fast
    as numpy's lexsort.
    """
    n_rows = len(keys[0][0])
    row_bits = n_rows.bit_length()
    packed, n_bits = np.zeros(n_rows, np.uint64), row_bits
    for values, n_values in keys:
        bits = (n_values - 1).bit_length()
        packed, n_bits = (packed << np.uint64(bits)) | values.astype(np.uint64), n_bits + bits
    assert n_bits <= 64, f"{n_rows} rows are too many for one group"
    packed = np.sort((packed << np.uint64(row_bits)) | np.arange(n_rows, dtype=np.uint64))
    return (packed & np.uint64((1 << row_bits) - 1)).astype(np.int64)


def unknown_domains(weights: Mapping[str, float], known: tuple[str, ...]) -> list[str]:
    """Return the domains that have a weight but no rows."""
    return sorted(set(weights) - set(known))


@lru_cache(maxsize=2)
def _block_order(n_blocks: int, seed: int, epoch: int) -> Ints:
    """Return the shuffled blocks of an epoch; cached, since planning a group alone needs it, too."""
    return np.argsort(hashes(np.arange(n_blocks, dtype=np.uint64), seed, epoch, "blocks"), kind="stable")


def _balanced(queues: Ints, n_queues: int) -> Ints:
    """Return the micro-batches of each queue and step, ``(n_queues, n_steps)``; -1 for an empty one.

    ``queues``: the queue of each micro-batch. Those at the end of long queues move to short ones, until queues differ
    by at most one.
    """
    counts = np.bincount(queues, minlength=n_queues)
    n_steps = -(-len(queues) // n_queues)
    targets = np.full(n_queues, len(queues) // n_queues)
    targets[np.argsort(-counts, kind="stable")[: len(queues) % n_queues]] += 1
    at = np.arange(len(queues)) - (np.cumsum(counts) - counts)[queues]  # in its queue
    stays = at < targets[queues]
    places = np.full((n_queues, n_steps), -1)
    places[queues[stays], at[stays]] = np.flatnonzero(stays)
    step = np.arange(n_steps)[None]
    places[(step < targets[:, None]) & (places < 0)] = np.flatnonzero(~stays)
    return places


def _queues(table: MicroBatch, starts: Ints, batches: Ints) -> tuple[Queue, ...]:
    """Return queues of micro-batches ``(n_queues, n_steps)``; ``starts``: where each one begins in ``table``."""
    flat = batches.reshape(-1)
    lengths = np.where(flat < 0, 0, starts[flat + 1] - starts[flat])
    ends = np.cumsum(lengths)
    rows = table[np.arange(lengths.sum()) + np.repeat(starts[flat] - (ends - lengths), lengths)]
    ends = np.concatenate([[0], ends])
    n_steps = batches.shape[1]
    bounds = [ends[i * n_steps : (i + 1) * n_steps + 1] for i in range(len(batches))]
    return tuple(Queue(rows[bound[0] : bound[-1]], bound - bound[0]) for bound in bounds)


def _padding_share(queues: tuple[Queue, ...], name: str) -> float:
    batches = [queue[i][name] for queue in queues for i in range(len(queue.starts) - 1)]
    used = sum(int(values.sum()) for values in batches)
    computed = sum(int(values.max()) * len(values) for values in batches if len(values))
    return 1.0 - used / computed if computed else 0.0
