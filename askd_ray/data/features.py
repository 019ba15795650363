"""A cache of decoded clips in memory-mapped files, which the trials of a search share."""

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
from askd_ray.data.shards import Block, read_shard, waveform_of
from askd_ray.files import atomic_path
from askd_ray.location import Location
from askd_ray.torch_setup import n_cores

_SCHEMA = pa.schema([("id", pa.string()), ("n_samples", pa.int32()), ("values", pa.large_list(pa.float32()))])


@dataclass(frozen=True)
class Clip:
    """One utterance of a shard without augmentation: its waveform, and its log-mel if that is cached."""

    id: str
    waveform: Callable[[], Waveform]
    n_samples: int = 0
    log_mel: NDArray[np.float32] | None = None
    """(n_mels, :func:`~askd_ray.audio.logmel.informative_frames`), read-only."""

    def cached_log_mel(self, window_frames: int) -> torch.Tensor | None:
        """Return the cached log-mel, or None if there is none or the window is too short for it."""
        if self.log_mel is None or window_frames < self.log_mel.shape[1]:
            return None
        return torch.from_numpy(self.log_mel.copy())  # a copy, since torch warns of read-only memory


def read_clips(shard: Location, block: Block) -> list[Clip]:
    """Return the clips of a shard's block; each call of ``waveform`` decodes the audio again."""
    return [Clip(u.id, partial(waveform_of, u)) for u in read_shard(shard, block.rows)]


@dataclass(frozen=True)
class Features:
    """A cache folder with one file for each block: log-mels with ``n_mels`` bins, or waveforms (``n_mels`` 0)."""

    folder: Path
    n_mels: int

    def clips(self, shard: Location, block: Block) -> list[Clip]:
        """Return the clips of a shard's block, and write its cache file first if it is missing.

        Raises :class:`~askd_ray.errors.AskdError` when the shard is damaged.
        """
        path = self.folder / f"{shard.name}.{block.number}.arrow"
        if not path.is_file():
            self._write_file(shard, block, path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        values = [row.values.to_numpy(zero_copy_only=True) for row in table.column("values")]
        ids, lengths = table.column("id").to_pylist(), table.column("n_samples").to_pylist()
        indexed_rows = enumerate(zip(ids, lengths, values, strict=True))
        return [self._clip(partial(_decoded, shard, block, i), *row) for i, row in indexed_rows]

    def _clip(self, decoded: Callable[[], Waveform], name: str, n_samples: int, values: NDArray[np.float32]) -> Clip:
        if self.n_mels:
            return Clip(name, decoded, n_samples, values.reshape(self.n_mels, -1))
        return Clip(name, values.copy)

    def _write_file(self, shard: Location, block: Block, path: Path) -> None:
        """Decode a block into a cache file, with one torch thread for each clip: bit for bit as without a cache."""
        utterances = read_shard(shard, block.rows)
        tasks = [partial(self._values, u) for u in utterances]
        features = list(prefetch(tasks, ahead=2 * n_cores(), threads=n_cores()))
        ids, lengths, values = [u.id for u in utterances], [n for n, _ in features], [v for _, v in features]
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


def _decoded(shard: Location, block: Block, row: int) -> Waveform:
    """Decode one clip of a block: needed for a clip longer than its window, which is rare."""
    return waveform_of(read_shard(shard, block.rows)[row])
