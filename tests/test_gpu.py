"""Whatever computes on a GPU does so once: labelling, training, decoding, the measurement of speed.

Run on a machine with a GPU: pytest -m gpu. It was written without one (docs/install.md).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_run import N_PER_SPLIT, small_run, utterances

from askd_ray.config.schema import Recipe
from askd_ray.data.shards import waveform_of
from askd_ray.evaluate.ray_evaluate import evaluate
from askd_ray.export.bundle import export
from askd_ray.models.bundle import open_engine, read_bundle
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run
from askd_ray.targets.ray_label import label
from askd_ray.text.error_rate import count_word_errors
from askd_ray.torch_setup import Device
from askd_ray.train.ray_trainer import distill

DEVICES = [pytest.param("cpu", marks=pytest.mark.sweep), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The GPU; and the CPU, which shows that the test itself works."""
    yield request.param
    disconnect()


def recipe_of(folder: Path, speech: Path, device: Device) -> Recipe:
    run = small_run(
        folder,
        speech,
        targets={"kind": "pseudo"},
        window={"padded_share": 0.0},
        train={
            "use_gpu": device == "cuda",
            "precision": "bfloat16" if device == "cuda" else "float32",
            "epochs": 1,
            "batch_utterances": 4,
            "lr": 1e-6,
            "encoder_lr": 1e-6,
        },
        evaluate={"speed_clips": 2},
    )
    run.finish("prepare", "prepared", {}, run.begin("prepare"))
    return run.recipe


def test_each_stage_computes_once(device: Device, tmp_path: Path, speech: Path, weights: Path):
    recipe = recipe_of(tmp_path, speech, device)
    labelled = label(recipe)
    assert labelled["utterances"] == N_PER_SPLIT and labelled["labelled"] > 0
    distilled = distill(recipe)
    assert distilled["steps"] >= 1 and distilled["dev_wer"] < 0.5
    export(recipe)
    scores = evaluate(recipe)
    assert scores["speed"]["hardware"]["device"] == device
    assert scores["sets"]["test"]["models"]["student"]["wer"] < 0.5
    heard = {
        where: [t.text for t in open_engine(read_bundle(Run(recipe).bundle, where), where).transcribe(clips(speech))]
        for where in ("cpu", device)
    }
    assert count_word_errors(heard["cpu"], heard[device]).rate < 0.2  # int8 and float16
    assert device == "cpu" or torch.cuda.max_memory_allocated() == 0  # what computed there were Ray's processes


def clips(speech: Path) -> list[torch.Tensor]:
    return [waveform_of(u) for u in utterances(speech, N_PER_SPLIT)]
