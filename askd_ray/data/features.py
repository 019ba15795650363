"""Clips that were decoded once, in files that every process maps into memory: a search's trials share them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import clip_log_mel, informative_frames
from askd_ray.data.prefetch import prefetch
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, to_utterances, waveform_of
from askd_ray.files import atomic_path
from askd_ray.location import Location
from askd_ray.torch_setup import n_cores

_SCHEMA = pa.schema([("id", pa.string()), ("n_samples", pa.int32()), ("values", pa.large_list(pa.float32()))])


@dataclass(frozen=True)
class Clip:
    """One utterance of a shard as it is said: its waveform, and its log-mel where that is kept."""

    id: str
    waveform: Callable[[], Waveform]
    n_samples: int = 0
    log_mel: NDArray[np.float32] | None = None
    """(n_mels, :func:`~askd_ray.audio.logmel.informative_frames`), read-only."""

    def cached_log_mel(self, window_samples: int, n_frames: int) -> torch.Tensor | None:
        """Return the log-mel if it is kept, and just what this window in a batch of so many frames would give."""
        if self.log_mel is None or window_samples < self.n_samples or n_frames < self.log_mel.shape[1]:
            return None
        return torch.from_numpy(self.log_mel.copy())  # torch warns of memory that it may not write to


def read_clips(shard: Location) -> list[Clip]:
    """Return the clips of a shard, to be decoded each time that they are asked for."""
    return [Clip(u.id, partial(waveform_of, u)) for u in to_utterances(read_table(shard))]


@dataclass(frozen=True)
class Features:
    """A folder with a file for each shard that was asked for: log-mels of ``n_mels`` bins, or waveforms (0)."""

    folder: Path
    n_mels: int

    def clips(self, shard: Location) -> list[Clip]:
        """Return the clips of a shard; its file is made if it is not there.

        Raises :class:`~askd_ray.errors.AskdError` when the shard is damaged.
        """
        path = self.folder / f"{shard.name}.arrow"
        if not path.is_file():
            self._write_file(shard, path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        values = [row.values.to_numpy(zero_copy_only=True) for row in table.column("values")]
        ids, lengths = table.column("id").to_pylist(), table.column("n_samples").to_pylist()
        indexed_rows = enumerate(zip(ids, lengths, values, strict=True))
        return [self._clip(shard, i, *row) for i, row in indexed_rows]

    def _clip(self, shard: Location, index: int, name: str, n_samples: int, values: NDArray[np.float32]) -> Clip:
        if self.n_mels:
            return Clip(name, partial(_decoded, shard, index), n_samples, values.reshape(self.n_mels, -1))
        return Clip(name, values.copy)

    def _write_file(self, shard: Location, path: Path) -> None:
        """Decode a shard, with one torch thread a clip as batches are made: not a bit differs."""
        utterances = to_utterances(read_table(shard))
        tasks = [partial(self._values, u) for u in utterances]
        made = list(prefetch(tasks, ahead=2 * n_cores(), threads=n_cores()))
        ids, lengths, values = [u.id for u in utterances], [n for n, _ in made], [v for _, v in made]
        offsets = np.cumsum([0, *map(len, values)])
        flat = pa.LargeListArray.from_arrays(offsets, np.concatenate(values))
        table = pa.Table.from_arrays([pa.array(ids), pa.array(lengths, pa.int32()), flat], schema=_SCHEMA)
        with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as file:
            file.write_table(table)

    def _values(self, utterance: Utterance) -> tuple[int, NDArray[np.float32]]:
        waveform = waveform_of(utterance)
        if not self.n_mels:
            return len(waveform), waveform
        log_mel = clip_log_mel(waveform, informative_frames(len(waveform)), self.n_mels)
        return len(waveform), log_mel.numpy().reshape(-1)


def _decoded(shard: Location, index: int) -> Waveform:
    """Decode one clip of a shard: one that its window cuts, which is rare."""
    return waveform_of(to_utterances(read_table(shard).slice(index, 1))[0])
