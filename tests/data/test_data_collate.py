"""Batches of real speech: what the student hears is augmented, what its online teacher hears is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import utterances
from tiny_run import label_of

from askd_ray.audio.augment import augment, speed_factor
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import HOP_LENGTH, window_samples
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader, from_bytes, to_bytes
from askd_ray.data.labels import write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch, Utterance
from askd_ray.data.shards import to_table, waveform_of, write_table
from askd_ray.location import Location
from askd_ray.objective.tensors import TensorBatch
from askd_ray.randomness import Draw

UNMASKED = {"freq_masks": 0, "time_masks": 0}
LOUD = {"noise": {"share": 1.0}, "reverb": {"share": 1.0}, "telephone": {"share": 1.0}, "gain_db": [-6, 6]}


EPOCHS = 4


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Utterance]:
    return utterances(speech, 4)


@pytest.fixture
def batches(clips: list[Utterance], tmp_path: Path):
    """The batches of one epoch under some augmentation."""
    write_table(tmp_path / "shards" / "train-00000.parquet", to_table(clips))
    write_labels(tmp_path / "labels" / "train-00000.parquet", [label_of(u) for u in clips], {"top_k": 1})

    def _batches(
        augmentation: dict[str, Any],
        epoch: int = 0,
        teacher_n_mels: int = 0,
        threads: int = 0,
        padded_share: float = 0.0,
        on_device: bool = False,
        **batching: object,
    ) -> list[Batch]:
        window = {"padded_share": padded_share}
        train = {"epochs": EPOCHS, "batching": {"utterances": 3, **batching}}
        recipe = Recipe.model_validate({"augment": augmentation, "window": window, "train": train})
        stream = BatchLoader(
            shards=Location.of(tmp_path / "shards"),
            labels=Location.of(tmp_path / "labels"),
            label_key={"top_k": 1},
            n_mels=80,
            teacher_n_mels=teacher_n_mels,
            train=recipe.train,
            window=recipe.window,
            augment=recipe.augment,
            seed=3,
            log_mel_on_device=on_device,
        )
        tasks = [
            task
            for task in tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1)
            if task.epoch == epoch
        ]
        if threads:
            return list(prefetch((job for task in tasks for job in stream.batch_tasks(task)), ahead=4, threads=threads))
        return [batch for task in tasks for batch in stream.batches(task)]

    return _batches


def by_id(batches: list[Batch], name: str) -> dict[str, np.ndarray]:
    return {i: row for batch in batches for i, row in zip(batch.ids, getattr(batch, name), strict=True)}


@pytest.mark.parametrize("augmentation", [{}, {"speed": [0.9, 1.1], **LOUD}])
def test_online_teacher_gets_the_clean_clip(batches, clips: list[Utterance], augmentation: dict[str, Any]):
    augmented = by_id(batches(augmentation, teacher_n_mels=80), "teacher_log_mel")
    assert augmented.keys() == {u.id for u in clips}
    for utterance in clips:
        clean = log_mel_padded([waveform_of(utterance)]).numpy()[0]
        np.testing.assert_allclose(augmented[utterance.id], clean, atol=1e-5)


@pytest.mark.parametrize("augmentation", [{"spec": UNMASKED}, {"spec": UNMASKED, "speed": [0.9, 1.1], **LOUD}])
def test_student_gets_the_augmented_clip(batches, clips: list[Utterance], augmentation: dict[str, Any]):
    settings = Recipe.model_validate({"augment": augmentation}).augment
    made = batches(augmentation, epoch=2)
    augmented, windows = by_id(made, "log_mel"), by_id(made, "window_frames")
    other_epoch = by_id(batches(augmentation, epoch=3), "log_mel")
    for utterance in clips:
        waveform = augment(waveform_of(utterance), settings, Draw(3, 2, utterance.id))
        n_frames = windows[utterance.id]
        alone = log_mel_windows([waveform], [n_frames * HOP_LENGTH]).numpy()[0]
        np.testing.assert_allclose(augmented[utterance.id][:, :n_frames], alone, atol=1e-5)
        assert not augmented[utterance.id][:, n_frames:].any()
        if "noise" in augmentation:
            shared = slice(0, min(n_frames, other_epoch[utterance.id].shape[1]))
            assert np.abs(augmented[utterance.id][:, shared] - other_epoch[utterance.id][:, shared]).mean() > 0.01


def test_batches_are_independent_of_threads(batches, clips: list[Utterance]):
    expected = {"speed": [0.9, 1.1], **LOUD}
    one, *others = (batches(expected, threads=threads, utterances=1) for threads in (1, 3, 3))
    assert [batch.ids for batch in one] == [batch.ids for batch in others[0]] and len(one) == len(clips)
    for other in others:
        for made, again in zip(one, other, strict=True):
            for name, array in vars(made).items():
                np.testing.assert_array_equal(getattr(again, name), array)


def test_copies_in_an_epoch_differ(batches, clips: list[Utterance]):
    made = batches({"spec": UNMASKED, "gain_db": [-20, 0]}, domain_weights={clips[0].domain: 2.0})
    augmented: dict[str, list[float]] = {u.id: [] for u in clips}
    for batch in made:
        for name, log_mel in zip(batch.ids, batch.log_mel, strict=True):
            augmented[name].append(float(log_mel.max()))
    assert all(len(both) == 2 and abs(both[0] - both[1]) > 1e-3 for both in augmented.values())


def test_masks_are_applied_after_augmentation(batches, clips: list[Utterance]):
    without, masked = (by_id(batches({"speed": [0.5], "spec": s}), "log_mel") for s in (UNMASKED, {"time_share": 0.2}))
    for utterance in clips:
        n_frames = 2 * len(waveform_of(utterance)) // HOP_LENGTH
        changed = (without[utterance.id] != masked[utterance.id]).any(axis=0)
        assert changed[:n_frames].any() and not changed[n_frames:].any()
    later = [(without[u.id] != masked[u.id]).any(axis=0)[len(waveform_of(u)) // HOP_LENGTH :].any() for u in clips]
    assert any(later)


def test_window_fits_the_slowed_clip(batches, clips: list[Utterance]):
    settings = Recipe.model_validate({"augment": {"speed": [0.5, 2.0]}}).augment
    made = batches({"speed": [0.5, 2.0]})
    for batch in made:
        lengths = [
            len(waveform_of(u)) / speed_factor(settings, Draw(3, 0, u.id), len(waveform_of(u)))
            for u in clips
            if u.id in batch.ids
        ]
        longest = round(max(lengths))
        assert longest < HOP_LENGTH * batch.log_mel.shape[2] <= window_samples(longest + 1, 2.5)


@pytest.mark.parametrize("augmentation", [{}, {"speed": [0.5, 1.1], **LOUD}])
@pytest.mark.parametrize("padded_share", [0.0, 0.5])
def test_log_mels_on_the_device_equal_those_of_the_host(batches, augmentation: dict[str, Any], padded_share: float):
    settings = {"teacher_n_mels": 128, "padded_share": padded_share, "audio_s": 70.0}
    host, device = (batches(augmentation, **settings, on_device=on_device) for on_device in (False, True))
    assert len(host) == len(device)
    for one, other in zip(host, device, strict=True):
        assert other.log_mel.shape == (len(one.ids), 80, 0) and other.teacher_log_mel.shape == (len(one.ids), 128, 0)
        assert bool(other.teacher_waveforms.size) == bool(augmentation)
        expected, found = (TensorBatch.of(batch, torch.device("cpu")) for batch in (one, from_bytes(to_bytes(other))))
        for name in ("log_mel", "teacher_log_mel"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)
        assert (found.window_frames is None) == (expected.window_frames is None)
