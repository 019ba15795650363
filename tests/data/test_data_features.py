"""Clips that were decoded once give the batches that clips decoded anew give, bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from small_run import utterances
from tiny_run import label_of

from askd_ray.config.schema import Recipe
from askd_ray.data import features
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch, Utterance
from askd_ray.data.shards import to_table, waveform_of, write_table
from askd_ray.location import Location

LOUD = {"noise": {"share": 0.5}, "reverb": {"share": 0.5}, "speed": [0.9, 1.0, 1.1], "gain_db": [-6, 6]}


@pytest.fixture(scope="module")
def data(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of real prompts, and of one that fills 30 s: no window holds it and silence behind it."""
    folder = tmp_path_factory.mktemp("data")
    clips = utterances(speech, 9)
    whole = np.concatenate([waveform_of(u) for u in clips * 2])[: 30 * 16_000 - 7]
    soundfile.write(folder / "long.flac", whole, 16_000)
    clips.append(replace(clips[0], id="long", audio=(folder / "long.flac").read_bytes(), duration_s=len(whole) / 16e3))
    for number, part in enumerate((clips[:5], clips[5:])):
        write_table(folder / "shards" / f"train-{number:05d}.parquet", to_table(part))
        write_labels(folder / "labels" / f"train-{number:05d}.parquet", [label_of(u) for u in part], {"top_k": 1})
    return folder


def batches(data: Path, kept: Path | None, teacher_n_mels: int = 0, **sections: Any) -> list[Batch]:
    train = {"batching": {"utterances": 4, "audio_s": 60}, "epochs": 2}
    recipe = Recipe.model_validate({"train": train, "window": {"padded_share": 0.2}, **sections})
    stream = BatchLoader(
        shards=Location.of(data / "shards"),
        labels=Location.of(data / "labels"),
        label_key={"top_k": 1},
        n_mels=80,
        teacher_n_mels=teacher_n_mels,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=3,
        features_folder=kept,
    )
    tasks = tasks_from(length_grouped_sampler(stream.rows(), stream), DataCursor(), 0, 1)
    return list(prefetch((job for task in tasks for job in stream.batch_tasks(task)), ahead=4, threads=2))


NEARLY_NO_SILENCE = {"train_silence_s": [0.001, 0.02], "padded_share": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "log-mels, masked": {},
    "log-mels in windows too short for them": {"window": NEARLY_NO_SILENCE},
    "waveforms, augmented": {"augment": LOUD},
    "waveforms for an online teacher": {"teacher_n_mels": 80},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_cached_features_give_identical_batches(
    data: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    expected = batches(data, None, **settings)
    assert sum(len(batch.ids) for batch in expected) == 20
    first = batches(data, tmp_path / "kept", **settings)
    decoded = list[str]()
    monkeypatch.setattr(features, "waveform_of", lambda u: decoded.append(u.id) or waveform_of(u))
    later = batches(data, tmp_path / "kept", **settings)
    for found in (first, later):
        for one, other in zip(found, expected, strict=True):
            assert one.ids == other.ids
            for name, value in vars(other).items():
                assert np.array_equal(getattr(one, name), value), name
    alone = {"long"} if "window" not in settings else {i for batch in expected for i in batch.ids}
    assert set(decoded) <= alone  # all else came from the files


def test_feature_cache_has_two_files(data: Path, tmp_path: Path):
    batches(data, tmp_path)
    (one, other) = sorted(tmp_path.iterdir())
    assert (one.name, other.name) == ("train-00000.parquet.0.arrow", "train-00001.parquet.0.arrow")
    table = pa.ipc.open_file(pa.memory_map(str(one))).read_all()
    seconds = sum(table.column("n_samples").to_pylist()) / 16_000
    assert len(table) == 5
    assert 32_000 < one.stat().st_size / seconds < 40_000  # 32 kB a second, and what lies around clips of a second


def test_half_written_cache_file_is_ignored(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(utterance: Utterance) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(features, "waveform_of", fails)
    with pytest.raises(OSError, match="the disk is full"):
        batches(data, tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))
