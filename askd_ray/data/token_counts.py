"""How often the train targets use each token: what a smaller vocabulary keeps depends on it."""

from collections import Counter
from functools import lru_cache

import numpy as np
import pyarrow.compute as pc

from askd_ray.data.row_index import RowIndex
from askd_ray.data.shards import read_table
from askd_ray.files import cache_root, file_lock, read_json, write_json
from askd_ray.location import Location, map_concurrently


def token_counts(index: RowIndex, labels: Location) -> dict[int, int]:
    """Return how often each token occurs in the targets of all labelled train utterances.

    The labels are read once; the counts stay in this machine's cache, by the stamp of the index.
    """
    return _counts(index.stamp, index.shards, labels)


@lru_cache(maxsize=4)
def _counts(stamp: str, shards: tuple[str, ...], labels: Location) -> dict[int, int]:
    file = cache_root() / "token_counts" / f"{stamp}.json"
    with file_lock(file.with_name(f"{file.name}.lock")):
        if not file.is_file():
            counts = Counter[int]()
            for of_shard in map_concurrently(lambda name: _count(labels / name), shards):
                counts.update(of_shard)
            write_json(file, {str(token): counts[token] for token in sorted(counts)})
    return {int(token): count for token, count in read_json(file).items()}


def _count(labels: Location) -> dict[int, int]:
    ids = pc.call_function("list_flatten", [read_table(labels, ["target_ids"]).column("target_ids")])
    tokens, counts = np.unique(ids.to_numpy(), return_counts=True)
    return dict(zip(tokens.tolist(), counts.tolist(), strict=True))
