"""Whatever computes on a GPU does so once: labelling, training, decoding, the measurement of speed.

Run on a machine with a GPU: pytest -m gpu. It was written without one (docs/install.md).
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_run import manifest_rows, utterances, write_manifest
from step_overhead import WEIGHTS, make_batches, make_stepper

from askd_ray.bundles.bundle import export
from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.data.schema import Batch
from askd_ray.data.shards import waveform_of
from askd_ray.evaluation.ray_evaluate import evaluate
from askd_ray.models.bundle import COMPUTE_TYPES, ComputeType, open_engine, read_bundle
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run
from askd_ray.targets.ray_label import label
from askd_ray.text.error_rate import count_word_errors
from askd_ray.torch_setup import Device, use_tf32
from askd_ray.train.ledger import TRAINED
from askd_ray.train.ray_trainer import distill
from askd_ray.train.step import StepResult

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


def test_ctc_engine_equals_the_cpu(device: Device, speech: Path, ctc_run: Run):
    """In torch, in float16 and in batches, where the CPU has ONNX Runtime."""
    clips = [waveform_of(clip) for clip in utterances(speech, 8)]
    on_cpu = open_engine(read_bundle(ctc_run.bundle, "cpu", "float32"))
    on_gpu = open_engine(read_bundle(ctc_run.bundle, device), device)
    texts = [[transcript.text for transcript in engine.transcribe(clips)] for engine in (on_cpu, on_gpu)]
    assert count_word_errors(*texts).rate < 0.1


def test_step_equals_the_cpu_and_waits_once(device: Device, tmp_path: Path):
    """Copies, log-mels, the gradient of the projection and the optimizer, in float32 and in half precision."""
    batches, where = make_batches(tmp_path, 3), torch.device(device)
    expected, _ = step_on(torch.device("cpu"), "float32", [batches["host"]] * 2)
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.05)):
        found, waits = step_on(where, precision, [batches["device"]] * 2)
        assert found.outcome == TRAINED and found.n_tokens == expected.n_tokens
        assert found.means["loss"] == pytest.approx(expected.means["loss"], rel=tolerance)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=4 * tolerance)
        assert waits == (1 if device == "cuda" else 0)


def step_on(device: torch.device, precision: str, batches: list[Batch]) -> tuple[StepResult, int]:
    """The first step of a student, and how often the host waited for the GPU in the second one."""
    stepper = make_stepper(precision)
    stepper.student.to(device)
    use_tf32(device)
    result = stepper.step(batches, WEIGHTS, [0, 1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        stepper.step(batches, WEIGHTS, [0, 1])
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return result, sum("synchronizing" in str(warning.message) for warning in caught)
