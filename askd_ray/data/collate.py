"""Make batches of planned utterances: decode, augment, trim or pad, log-mel, mask; add targets and soft labels."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from askd_ray.audio.augment import augment, spec_augment
from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import clip_log_mel, log_mel_padded, log_mel_windows, pad_batch
from askd_ray.audio.units import HOP_LENGTH, PADDED_FRAMES, DecodingWindow, samples_of
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.features import Clip, Features, read_clips
from askd_ray.data.labels import LabelKey, SoftLabels, StatesShape, check_labels, read_labels
from askd_ray.data.length_grouped import unknown_domains
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import Planned, ReadTask, Row
from askd_ray.data.schema import IGNORED, Batch, Utterance
from askd_ray.data.shards import read_table, train_paths, waveform_of
from askd_ray.errors import AskdError
from askd_ray.location import Location, map_concurrently
from askd_ray.randomness import Draw


@dataclass(frozen=True)
class BatchLoader:
    """Makes batches of shards and labels, in the same way in a local process and in a Ray Data task.

    ``teacher_n_mels`` is 0 if no online teacher needs the clean clips; ``states_shape``: the cached decoder states that
    the objective reads.
    """

    shards: Location
    labels: Location
    label_key: LabelKey
    n_mels: int
    teacher_n_mels: int
    train: Train
    window: Window
    augment: Augment
    seed: int
    states_shape: StatesShape = (0, 0)
    features_folder: Path | None = None
    """A cache of decoded clips that other processes share; None disables it."""

    def labelled_rows(self) -> tuple[tuple[Row, ...], ...]:
        """Check every label shard against its shard and return the rows that have labels, by shard: for a sampler.

        Raises :class:`AskdError` when there are no shards, labels are missing or stale, or ``domain_weights`` names a
        domain without rows.
        """
        shards = map_concurrently(self._rows, train_paths(self.shards))
        if not any(shards):
            raise AskdError(f"no train utterance in {self.labels} has labels: `askd label` says why each is left out")
        unknown, known = unknown_domains(self.train.batching.domain_weights, shards)
        if unknown:
            raise AskdError(
                f"train.batching.domain_weights: no train utterance of {', '.join(unknown)}; "
                f"there are: {', '.join(known)}"
            )
        return tuple(shards)

    def _rows(self, path: Location) -> tuple[Row, ...]:
        """Return the rows of a shard that have labels."""
        labels = self.labels / path.name
        check_labels(labels, path, self.label_key)
        targets = read_table(labels, ["target_ids"]).column("target_ids")
        lengths = pc.call_function("list_value_length", [targets]).to_pylist()
        rows = read_table(path, ["id", "duration_s", "domain"]).to_pylist()
        indexed_rows = enumerate(zip(rows, lengths, strict=True))
        return tuple(Row(path.name, i, **row, n_tokens=n) for i, (row, n) in indexed_rows if n)

    def batches(self, task: ReadTask) -> Iterator[Batch]:
        """Make and yield the batches of a task in order; see :meth:`batch_tasks`."""
        return (make() for make in self.batch_tasks(task))

    def batch_tasks(self, task: ReadTask) -> Iterator[Callable[[], Batch]]:
        """Read the shards of a task once and yield one function for each batch; any thread may call it.

        Raises :class:`AskdError` when a shard is damaged; the functions raise it when audio cannot be decoded.
        """
        shard_names = sorted({p.shard for batch in task.batches for p in batch})
        clips = {name: self._clips(self.shards / name) for name in shard_names}
        sizes = self.label_key["top_k"], self.states_shape
        labels = {name: read_labels(self.labels / name, *sizes) for name in shard_names}
        for batch in task.batches:
            rows = [(clips[p.shard][p.index], labels[p.shard][p.index]) for p in batch]
            yield partial(self._collate, rows, batch, task.epoch)

    def teacher_losses(self) -> NDArray[np.float32]:
        """Return the teacher's mean loss, in nats per token, on every train utterance for which it has labels."""
        losses: list[float] = []
        for path in train_paths(self.shards):
            table = read_table(self.labels / path.name, ["left_out", "teacher_loss"])
            rows = [row for row in table.to_pylist() if not row["left_out"]]
            losses += [row["teacher_loss"] for row in rows if row["teacher_loss"] is not None]
        return np.asarray(losses, np.float32)

    def _clips(self, shard: Location) -> list[Clip]:
        if self.features_folder is None:
            return read_clips(shard)
        needs_waveforms = self.augment.changes_waveform or self.teacher_n_mels > 0
        return Features(self.features_folder, 0 if needs_waveforms else self.n_mels).clips(shard)

    def _collate(self, rows: Sequence[tuple[Clip, SoftLabels]], planned: Sequence[Planned], epoch: int) -> Batch:
        if not rows:
            return empty_batch(self.n_mels, self.label_key["top_k"], self.teacher_n_mels, self.states_shape)
        window_frames = [p.window_samples // HOP_LENGTH for p in planned]
        draws = [Draw(self.seed, epoch, clip.id, p.copy) for (clip, _), p in zip(rows, planned, strict=True)]
        log_mels, clean, speech_frames = list[torch.Tensor](), list[Waveform](), list[int]()
        for (clip, _), n_frames, draw in zip(rows, window_frames, draws, strict=True):
            log_mel, n_samples = clip.cached_log_mel(n_frames), clip.n_samples
            if log_mel is None:
                clean.append(clip.waveform())
                augmented = augment(clean[-1], self.augment, draw)
                log_mel = clip_log_mel(augmented[: n_frames * HOP_LENGTH], n_frames, self.n_mels)
                n_samples = len(augmented)
            log_mels.append(log_mel)
            speech_frames.append(min(n_samples // HOP_LENGTH, n_frames))
        batch = pad_batch(log_mels, window_frames)
        for row, window, n_frames, draw in zip(batch, window_frames, speech_frames, draws, strict=True):
            row[:, :n_frames] = spec_augment(row[:, :n_frames], self.augment.spec, draw.seed_of("mask"))
            if window == PADDED_FRAMES:
                row[:, n_frames:] = 0.0  # as log_mel_padded does it
        if self.teacher_n_mels:  # clean and padded, as `askd label` does it; the feature cache holds waveforms then
            padded = log_mel_padded(clean, self.teacher_n_mels).numpy()
        else:
            padded = np.zeros((len(rows), 0, 0), np.float32)
        arrays = _targets([label for _, label in rows])
        return Batch(
            ids=tuple(clip.id for clip, _ in rows),
            log_mel=batch.numpy(),
            window_frames=np.asarray(window_frames, np.int64),
            teacher_log_mel=padded,
            **arrays,
        )


def _targets(labels: Sequence[SoftLabels]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a batch that have one position for each token."""
    n, k = len(labels), labels[0].top_ids.shape[1]
    # The last prompt token predicts the first target, so prompt and targets share one position.
    length = max(len(label.prompt_ids) - 1 + len(label.target_ids) for label in labels)
    decoder_ids = np.zeros((n, length), np.int64)
    targets = np.full((n, length), IGNORED, np.int64)
    top_ids = np.zeros((n, length, k), np.int64)
    top_log_probs = np.zeros((n, length, k), np.float32)
    rest, token_loss = np.zeros((n, length), np.float32), np.zeros((n, length), np.float32)
    states = np.zeros((n, length, *labels[0].states.shape[1:]), np.float16)
    for i, label in enumerate(labels):
        prompt = label.prompt_ids
        positions = slice(len(prompt) - 1, len(prompt) - 1 + len(label.target_ids))
        decoder_ids[i, : positions.stop] = [*prompt, *label.target_ids[:-1]]
        targets[i, positions] = label.target_ids
        top_ids[i, positions] = label.top_ids
        top_log_probs[i, positions] = label.top_log_probs
        rest[i, positions] = label.rest_log_prob
        token_loss[i, positions] = label.token_loss
        states[i, positions] = label.states
    return {
        "decoder_ids": decoder_ids,
        "targets": targets,
        "top_ids": top_ids,
        "top_log_probs": top_log_probs,
        "rest_log_prob": rest,
        "token_loss": token_loss,
        "states": states,
        "has_teacher": np.array([label.has_teacher for label in labels]),
    }


def empty_batch(n_mels: int, top_k: int, teacher_n_mels: int = 0, states_shape: StatesShape = (0, 0)) -> Batch:
    """Return the batch for a rank that has no data while other ranks have: one silent row without any target token."""
    return Batch(
        ids=(),
        log_mel=np.zeros((1, n_mels, 2), np.float32),
        window_frames=np.full(1, 2, np.int64),
        decoder_ids=np.zeros((1, 1), np.int64),
        targets=np.full((1, 1), IGNORED, np.int64),
        top_ids=np.zeros((1, 1, top_k), np.int64),
        top_log_probs=np.zeros((1, 1, top_k), np.float32),
        rest_log_prob=np.zeros((1, 1), np.float32),
        token_loss=np.zeros((1, 1), np.float32),
        states=np.zeros((1, 1, *states_shape), np.float16),
        has_teacher=np.ones(1, np.bool_),
        teacher_log_mel=np.zeros((1, teacher_n_mels, 2 if teacher_n_mels else 0), np.float32),
    )


def to_bytes(batch: Batch) -> bytes:
    """Return a batch as safetensors, for Ray's object store without pickle."""
    arrays = {name: value for name, value in vars(batch).items() if name != "ids"}
    names = np.frombuffer(json.dumps(batch.ids).encode(), np.uint8)
    return save({name: np.ascontiguousarray(a) for name, a in arrays.items()} | {"ids": names})


def from_bytes(data: bytes) -> Batch:
    """Return the batch of :func:`to_bytes`."""
    arrays = load(data)
    return Batch(ids=tuple(json.loads(arrays.pop("ids").tobytes())), **arrays)


def evaluation_windows(
    utterances: Sequence[Utterance], window: DecodingWindow, n_mels: int, batch_size: int, threads: int = 1
) -> Iterator[tuple[list[Utterance], torch.Tensor]]:
    """Yield utterances, sorted by length, with the log-mel ``(batch, n_mels, n_frames)`` of the engine's windows.

    A batch holds only clips of the same window length. Next to a longer clip, a clip would get more silence than in
    serving, and the dev WER would hide a student that does not stop. ``threads`` make the next batches while one is
    used.
    """

    def n_samples(utterance: Utterance) -> int:
        return window.samples(samples_of(utterance.duration_s), n_mels)

    def batch_of(clips: list[Utterance], length: int) -> tuple[list[Utterance], torch.Tensor]:
        return clips, log_mel_windows([waveform_of(u) for u in clips], [length] * len(clips), n_mels)

    tasks: list[Callable[[], tuple[list[Utterance], torch.Tensor]]] = []
    for length, group in groupby(sorted(utterances, key=lambda u: (u.duration_s, u.id)), key=n_samples):
        clips = list(group)
        tasks += [partial(batch_of, clips[i : i + batch_size], length) for i in range(0, len(clips), batch_size)]
    return prefetch(tasks, threads + 1, threads)
