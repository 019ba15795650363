"""Row indices in memory."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from askd_ray.audio.units import samples_of
from askd_ray.data.row_index import IndexNames, RowIndex, record_batch
from askd_ray.location import Location
from askd_ray.randomness import utterance_key


def index_of(lengths_s: Sequence[float], block_rows: int = 5, n_batches: int = 1) -> RowIndex:
    """The index of the utterances u0, u1, ... with these lengths, in the domains a and b in turn.

    Each block is a shard; ``n_batches``: the record batches of the file.
    """
    n = len(lengths_s)
    columns = {
        "key": np.array([utterance_key(f"u{i}") for i in range(n)], np.uint64),
        "samples": np.array([samples_of(s) for s in lengths_s], np.int32),
        "teacher_loss": np.linspace(0.0, 1.0, n, dtype=np.float32),
        "tokens": np.array([2 + int(4 * s) for s in lengths_s], np.uint16),
        "domain": (np.arange(n) % 2).astype(np.uint16),
        "row": (np.arange(n) % block_rows).astype(np.uint8),
    }
    starts = [*range(0, n, block_rows), n]
    n_blocks = len(starts) - 1
    cuts = np.linspace(0, n_blocks, n_batches + 1).astype(int)
    batches = []
    for first, last in pairwise(cuts):
        rows = slice(starts[first], starts[last])
        offsets = np.array(starts[first : last + 1], np.int32) - starts[first]
        part = {name: values[rows] for name, values in columns.items()}
        batches.append(record_batch(np.arange(first, last), np.zeros(last - first), offsets, part))
    names = IndexNames(tuple(f"train-{i}" for i in range(n_blocks)), ("a", "b"))
    return RowIndex.of(Location.of("/nowhere"), "", names, batches)
