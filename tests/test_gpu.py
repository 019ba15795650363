"""Whatever computes on a GPU does so once: labelling, training, decoding, the measurement of speed.

Run on a machine with a GPU: pytest -m gpu. It was written without one (docs/install.md).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import manifest_rows, utterances, write_manifest

from askd_ray.bundles.bundle import export
from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.data.shards import waveform_of
from askd_ray.evaluation.ray_evaluate import evaluate
from askd_ray.models.bundle import COMPUTE_TYPES, ComputeType, open_engine, read_bundle
from askd_ray.ray_cluster import disconnect
from askd_ray.targets.ray_label import label
from askd_ray.text.error_rate import count_word_errors
from askd_ray.torch_setup import Device
from askd_ray.train.ray_trainer import distill

DEVICES = [pytest.param("cpu", marks=pytest.mark.full), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The GPU; and the CPU, which shows that the test itself works."""
    yield request.param
    disconnect()


def recipe_of(folder: Path, speech: Path, device: Device) -> Recipe:
    clips = write_manifest(folder / "clips", speech, manifest_rows(speech)[::30])
    on_gpu = {"workers": {"gpu": True}, "precision": "bfloat16"} if device == "cuda" else {}
    return Recipe.model_validate(
        {
            "name": "small",
            "runs_root": str(folder),
            "data": {"sources": [{"path": str(clips)}], "dev_share": 0.3, "test_share": 0.3},
            "targets": {"kind": "pseudo"},
            "train": {"epochs": 1, "batching": {"utterances": 4}, "optimizer": {"lr": 1e-5}, **on_gpu},
            "evaluate": {"speed_clips": 2},
        }
    )


def test_each_stage_computes_once(device: Device, tmp_path: Path, speech: Path):
    recipe = recipe_of(tmp_path, speech, device)
    prepare(recipe)
    assert label(recipe)["labelled"] > 0
    assert distill(recipe)["steps"] >= 1
    export(recipe)
    scores = evaluate(recipe)
    assert scores["speed"]["hardware"]["device"] == device
    assert scores["sets"]["test"]["models"]["teacher"]["wer"] < 0.5


def test_engine_equals_the_cpu(device: Device, speech: Path, weights: Path):
    clips = [waveform_of(utterance) for utterance in utterances(speech, 4)]

    def texts(device: Device, compute_type: ComputeType) -> list[str]:
        engine = open_engine(read_bundle(weights, device, compute_type), device)
        return [transcript.text for transcript in engine.transcribe(clips)]

    on_cpu = texts("cpu", "int8")
    for compute_type in COMPUTE_TYPES[device]:
        assert count_word_errors(on_cpu, texts(device, compute_type)).rate < 0.2, compute_type
