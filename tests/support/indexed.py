"""Row indices in memory."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from askd_ray.audio.units import samples_of
from askd_ray.data.row_index import ROW, IndexNames, RowIndex, record_batch
from askd_ray.location import Location
from askd_ray.randomness import utterance_key


def index_of(lengths_s: Sequence[float], block_rows: int = 5, n_batches: int = 1) -> RowIndex:
    """The index of the utterances u0, u1, ... with these lengths, in the domains a and b in turn.

    Each block is a shard; ``n_batches``: the record batches of the file.
    """
    n = len(lengths_s)
    rows = np.zeros(n, ROW)
    rows["key"] = [utterance_key(f"u{i}") for i in range(n)]
    rows["samples"] = [samples_of(s) for s in lengths_s]
    rows["teacher_loss"] = np.linspace(0.0, 1.0, n)
    rows["tokens"] = [2 + int(4 * s) for s in lengths_s]
    rows["domain"] = np.arange(n) % 2
    rows["row"] = np.arange(n) % block_rows
    starts = [*range(0, n, block_rows), n]
    n_blocks = len(starts) - 1
    cuts = np.linspace(0, n_blocks, n_batches + 1).astype(int)
    batches = []
    for first, last in pairwise(cuts):
        offsets = np.array(starts[first : last + 1], np.int32) - starts[first]
        part = rows[starts[first] : starts[last]]
        batches.append(record_batch(np.arange(first, last), np.zeros(last - first), offsets, part))
    names = IndexNames(tuple(f"train-{i}" for i in range(n_blocks)), ("a", "b"))
    return RowIndex.of(Location.of("/nowhere"), "", names, batches)
