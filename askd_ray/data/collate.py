"""Make batches of planned utterances: decode, augment, trim or pad, log-mel, mask; add targets and soft labels."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from askd_ray.audio.augment import augment, draw_masks, spec_augment
from askd_ray.audio.batch_logmel import frame_counts, pack_waveforms, padded_frame_counts
from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import clip_log_mel, log_mel_padded, log_mel_windows, pad_batch
from askd_ray.audio.units import HOP_LENGTH, PADDED_FRAMES, DecodingWindow, samples_of
from askd_ray.config.augment import Augment
from askd_ray.config.schema import Train, Window
from askd_ray.data.features import Clip, Features, read_clips
from askd_ray.data.labels import LabelKey, SoftLabels, StatesShape, read_labels
from askd_ray.data.length_grouped import unknown_domains
from askd_ray.data.prefetch import prefetch
from askd_ray.data.row_index import RowIndex, row_index
from askd_ray.data.sampler import MicroBatch, ReadTask
from askd_ray.data.schema import Batch, Utterance
from askd_ray.data.shards import Block, waveform_of
from askd_ray.data.student_labels import labels_of_student
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.randomness import Draw
from askd_ray.text.vocabulary import TokenMap

_Arrays = dict[str, NDArray[Any]]
"""Arrays of a batch by name."""


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
    log_mel_on_device: bool = False
    """Ship waveforms and masks: the training's device computes the log-mels, and has more time for it than the CPUs."""
    features_folder: Path | None = None
    """A cache of decoded clips that other processes share; None disables it."""
    token_map: TokenMap | None = None
    """The teacher's tokens in those of the student; None: they are the same."""

    def rows(self) -> RowIndex:
        """Return the labelled train utterances, for a sampler; an index that is missing or stale is made first.

        Raises :class:`AskdError` when there are no shards, labels are missing or stale, or ``domain_weights`` names a
        domain without rows.
        """
        index = row_index(self.shards, self.labels, self.label_key)
        if not index.n_rows:
            raise AskdError(f"no train utterance in {self.labels} has labels: `askd label` says why each is left out")
        unknown = unknown_domains(self.train.batching.domain_weights, index.domains)
        if unknown:
            raise AskdError(
                f"train.batching.domain_weights: no train utterance of {', '.join(unknown)}; "
                f"there are: {', '.join(sorted(index.domains))}"
            )
        return index

    def batches(self, task: ReadTask) -> Iterator[Batch]:
        """Make and yield the batches of a task in order; see :meth:`batch_tasks`."""
        return (make() for make in self.batch_tasks(task))

    def batch_tasks(self, task: ReadTask) -> Iterator[Callable[[], Batch]]:
        """Read the blocks of a task once and yield one function for each batch; any thread may call it.

        Raises :class:`AskdError` when a shard is damaged; the functions raise it when audio cannot be decoded.
        """
        sizes = self.label_key["top_k"], self.states_shape
        blocks = {
            number: (self._clips(block), read_labels(self.labels / block.shard, *sizes, block))
            for number, block in task.blocks.items()
        }
        for batch in task.batches:
            places = zip(batch["block"].tolist(), batch["row"].tolist(), strict=True)
            rows = [(blocks[block][0][row], blocks[block][1][row]) for block, row in places]
            yield partial(self._collate, rows, batch, task.epoch)

    def _clips(self, block: Block) -> list[Clip]:
        if self.features_folder is None:
            return read_clips(self.shards / block.shard, block)
        needs_waveforms = self.augment.changes_waveform or self.teacher_n_mels > 0 or self.log_mel_on_device
        features = Features(self.features_folder, 0 if needs_waveforms else self.n_mels)
        return features.clips(self.shards / block.shard, block)

    def _collate(self, rows: Sequence[tuple[Clip, SoftLabels]], planned: MicroBatch, epoch: int) -> Batch:
        if not rows:
            return empty_batch(self.n_mels, self.label_key["top_k"], self.teacher_n_mels, self.states_shape)
        window_frames = (planned["window_samples"] // HOP_LENGTH).tolist()
        copies = planned["copy"].tolist()
        draws = [Draw(self.seed, epoch, clip.id, copy) for (clip, _), copy in zip(rows, copies, strict=True)]
        features = self._waveforms if self.log_mel_on_device else self._log_mels
        return Batch(
            ids=tuple(clip.id for clip, _ in rows),
            numbers=planned["number"].copy(),
            window_frames=np.asarray(window_frames, np.int64),
            **features([clip for clip, _ in rows], window_frames, draws),
            **_targets([self._of_student(label, clip) for clip, label in rows]),
        )

    def _of_student(self, label: SoftLabels, clip: Clip) -> SoftLabels:
        return label if self.token_map is None else labels_of_student(label, clip.id, self.token_map)

    def _log_mels(self, clips: Sequence[Clip], window_frames: Sequence[int], draws: Sequence[Draw]) -> _Arrays:
        """Return the arrays of a batch that come from audio, with log-mels."""
        log_mels, clean, speech_frames = list[torch.Tensor](), list[Waveform](), list[int]()
        for clip, n_frames, draw in zip(clips, window_frames, draws, strict=True):
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
            padded = np.zeros((len(clips), 0, 0), np.float32)
        return {"log_mel": batch.numpy(), "teacher_log_mel": padded, **_no_waveforms(len(clips))}

    def _waveforms(self, clips: Sequence[Clip], window_frames: Sequence[int], draws: Sequence[Draw]) -> _Arrays:
        """Return the arrays of a batch that come from audio, with waveforms."""
        clean = [clip.waveform() for clip in clips]
        augmented = [augment(waveform, self.augment, draw) for waveform, draw in zip(clean, draws, strict=True)]
        counts = frame_counts([len(waveform) for waveform in augmented], window_frames)
        masks = [
            draw_masks(self.n_mels, n_frames, self.augment.spec, draw.seed_of("mask"))
            for n_frames, draw in zip(counts[:, 1].tolist(), draws, strict=True)
        ]
        arrays = _no_waveforms(len(clips)) | {
            "log_mel": np.zeros((len(clips), self.n_mels, 0), np.float32),
            "teacher_log_mel": np.zeros((len(clips), self.teacher_n_mels, 0), np.float32),
            "waveforms": pack_waveforms(augmented),
            "frame_counts": counts,
            "masks": np.asarray(masks, np.int64).reshape(len(clips), -1, 4),
        }
        if self.teacher_n_mels:
            arrays["teacher_frame_counts"] = padded_frame_counts([len(waveform) for waveform in clean])
            if self.augment.changes_waveform:
                arrays["teacher_waveforms"] = pack_waveforms(clean)
        return arrays


def _no_waveforms(n: int) -> _Arrays:
    """Return the arrays of a batch whose log-mels are computed already."""
    return {
        "waveforms": np.zeros((n, 0), np.float32),
        "frame_counts": np.zeros((n, 3), np.int64),
        "masks": np.zeros((n, 0, 4), np.int64),
        "teacher_waveforms": np.zeros((n, 0), np.float32),
        "teacher_frame_counts": np.zeros((n, 3), np.int64),
    }


def _targets(labels: Sequence[SoftLabels]) -> _Arrays:
    """Return the arrays of a batch that come from labels."""
    prompts, lengths = [label.prompt_ids for label in labels], [len(label.target_ids) for label in labels]
    # The last prompt token predicts the first target, so prompt and targets share one position.
    starts = [len(prompt) - 1 for prompt in prompts]
    length = max(start + n for start, n in zip(starts, lengths, strict=True))
    decoder_ids = np.zeros((len(labels), length), np.int64)
    for row, label, prompt in zip(decoder_ids, labels, prompts, strict=True):
        tokens = [*prompt, *label.target_ids[:-1]]
        row[: len(tokens)] = tokens
    positions = [
        length * row + start + np.arange(n) for row, (start, n) in enumerate(zip(starts, lengths, strict=True))
    ]

    def joined(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([getattr(label, name) for label in labels]).astype(dtype)

    return {
        "decoder_ids": decoder_ids,
        "n_targets": np.asarray(lengths, np.int64),
        "has_teacher": np.concatenate([label.taught for label in labels]),
        "teacher_loss": np.asarray([label.teacher_loss for label in labels], np.float32),
        "targets": joined("target_ids", np.int64),
        "target_positions": np.concatenate(positions).astype(np.int64),
        "rows": np.repeat(np.arange(len(labels)), lengths),
        "top_ids": joined("top_ids", np.int64),
        "top_log_probs": joined("top_log_probs", np.float32),
        "rest_log_prob": joined("rest_log_prob", np.float32),
        "token_loss": joined("token_loss", np.float32),
        "states": joined("states", np.float16),
    }


def empty_batch(n_mels: int, top_k: int, teacher_n_mels: int = 0, states_shape: StatesShape = (0, 0)) -> Batch:
    """Return the batch for a rank that has no data while other ranks have: one silent row without any target token."""
    return Batch(
        ids=(),
        numbers=np.zeros(0, np.int64),
        log_mel=np.zeros((1, n_mels, 2), np.float32),
        window_frames=np.full(1, 2, np.int64),
        decoder_ids=np.zeros((1, 1), np.int64),
        n_targets=np.zeros(1, np.int64),
        has_teacher=np.zeros(0, np.bool_),
        teacher_loss=np.zeros(1, np.float32),
        teacher_log_mel=np.zeros((1, teacher_n_mels, 2 if teacher_n_mels else 0), np.float32),
        **_no_waveforms(1),
        targets=np.zeros(0, np.int64),
        target_positions=np.zeros(0, np.int64),
        rows=np.zeros(0, np.int64),
        top_ids=np.zeros((0, top_k), np.int64),
        top_log_probs=np.zeros((0, top_k), np.float32),
        rest_log_prob=np.zeros(0, np.float32),
        token_loss=np.zeros(0, np.float32),
        states=np.zeros((0, *states_shape), np.float16),
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
