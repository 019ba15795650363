"""Labels of utterances in files that every rank maps into memory: those of an epoch do not fit into each rank's own.

A part holds what one rank observed between two exchanges, sorted by a hash of the utterance's id. It never changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from askd_ray.files import atomic_path, remove
from askd_ray.randomness import utterance_key

_Arrays = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CachedLabels:
    """The labels of one utterance: ``ids`` int32 (n_tokens, k), and ``buckets`` float16 (n_tokens, k + 1).

    The last bucket is the rest.
    """

    ids: torch.Tensor
    buckets: torch.Tensor


@dataclass
class LabelParts:
    """The parts of one epoch, by name, in the order in which they were written."""

    folder: Path
    names: list[str] = field(default_factory=list[str])
    _arrays: dict[str, _Arrays] = field(default_factory=dict[str, _Arrays])

    def open(self, names: Iterable[str]) -> None:
        """Map parts into memory. Raises :class:`OSError` or :class:`SafetensorError` for a missing or damaged file."""
        for name in names:
            self._arrays[name] = load_file(self.folder / name)  # mapped: read when used, and shared between processes
            self.names.append(name)

    def find(self, utterances: Sequence[str]) -> list[CachedLabels]:
        """Return the labels of utterances; of one that was observed more than once, the last ones.

        Raises :class:`KeyError` for an utterance without labels.
        """
        wanted, found = _keys(utterances), dict[int, CachedLabels]()
        for name in reversed(self.names):
            missing = [i for i in range(len(utterances)) if i not in found]
            if not missing:
                break
            arrays = self._arrays[name]
            keys, starts = arrays["keys"].numpy(), arrays["starts"]
            rows = np.searchsorted(keys, wanted[missing])
            for i, row in zip(missing, rows.tolist(), strict=True):
                if row < len(keys) and keys[row] == wanted[i]:
                    tokens = slice(int(starts[row]), int(starts[row + 1]))
                    found[i] = CachedLabels(arrays["ids"][tokens], arrays["buckets"][tokens])
        for i, utterance in enumerate(utterances):
            if i not in found:
                raise KeyError(f"no labels of the previous epoch for {utterance}")
        return [found[i] for i in range(len(utterances))]


def _keys(utterances: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a 64-bit hash of each id: among 36 million ids, two are equal once in 30,000 runs."""
    # Signed, since safetensors' torch tensors have few operations for unsigned numbers.
    return np.array([utterance_key(u) for u in utterances], np.uint64).view(np.int64)


@torch.autocast("cpu", enabled=False)  # bfloat16 autocast cannot concatenate float16 tensors
def write_part(path: Path, labels: Mapping[str, CachedLabels]) -> None:
    """Write a part atomically; ``labels`` must not be empty."""
    utterances = list(labels)
    keys = _keys(utterances)
    order = np.argsort(keys, kind="stable")
    in_order = [labels[utterances[i]] for i in order]
    lengths = torch.tensor([0, *(len(label.ids) for label in in_order)])
    arrays = {
        "keys": torch.from_numpy(keys[order]),
        "starts": lengths.cumsum(0),
        "ids": torch.cat([label.ids for label in in_order]),
        "buckets": torch.cat([label.buckets for label in in_order]),
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)


def exchange_parts(folder: Path, name: str | None) -> list[str]:
    """Return the names of the parts of all ranks, in the order of the ranks; ``name`` is this rank's, or None.

    All ranks call it together. If the ranks do not see one folder, each machine gets a copy of every part.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [] if name is None else [name]
    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, name)
    missing: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(missing, [n for n in names if n is not None and not (folder / n).is_file()])
    for rank, part in enumerate(names):
        if part is not None and any(part in of_rank for of_rank in missing):
            content = [(folder / part).read_bytes() if part == name else b""]
            dist.broadcast_object_list(content, src=rank)
            if not (folder / part).is_file():
                with atomic_path(folder / part) as temporary:
                    temporary.write_bytes(content[0])
    return [part for part in names if part is not None]


def remove_parts(folder: Path, kept: Iterable[str]) -> None:
    """Delete all parts of a folder except those named; several ranks may call it for one folder."""
    names = set(kept)
    for path in sorted(folder.glob("*")):
        if path.name not in names:
            remove(path)
