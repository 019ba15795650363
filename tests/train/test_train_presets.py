"""Each preset on real speech with tiny.en, whose decoder can memorise a few clips."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_run, utterances
from tiny_run import Model

from askd_ray.config.presets import CTC_PRESETS, PRESETS
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.shards import to_table, write_table
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext

N_CLIPS, N_COPIES = (
    3,
    8,
)  # copies give an epoch many steps: each epoch ends with a dev score and a checkpoint, which take time


@pytest.fixture(scope="module")
def runs(speech: Path, weights: Path, tiny_en: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Run]:
    """Runs by temperature of their labels; train and dev have the same few clips."""
    clips = utterances(speech, N_CLIPS)
    copies = [replace(clip, id=f"{clip.id}-{i}") for i in range(N_COPIES) for clip in clips]
    found: dict[float, Run] = {}
    for temperature in (1.0, 2.0):
        root = tmp_path_factory.mktemp("presets")
        objective = {"temperature": {"start": temperature}}
        keeping_states = {"states": "all"}
        run = small_run(root, speech, teacher={"model": str(weights)}, objective=objective, targets=keeping_states)
        shutil.rmtree(str(run.shards))
        write_table(run.shards / "train-00000.parquet", to_table(copies))
        write_table(run.shards / "dev-00000.parquet", to_table(clips))
        labels = label(*tiny_en, clips, run.recipe) * N_COPIES
        write_labels(run.labels / "train-00000.parquet", labels, label_key(run.recipe))
        found[temperature] = run
    return found


@pytest.mark.full
@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_memorises_three_clips(preset: str, runs: dict[float, Run], tmp_path: Path):
    optimizer = {"lr": 1e-4, "encoder_lr": 1e-4, "warmup_share": 0.05, "frozen_until": {"encoder": 1.0}}
    if preset in CTC_PRESETS:  # the head knows nothing at the start
        optimizer = {"lr": 3e-3, "encoder_lr": 1e-4, "warmup_share": 0.05}
    settings: dict[str, Any] = {
        "objective": {"preset": preset},
        "train": {
            "epochs": 5 if preset in CTC_PRESETS else 2,
            "batching": {"utterances": 2},
            "optimizer": optimizer,
        },
        "window": {"padded_share": 0.0},
        "student": {"reader": "ctc" if preset in CTC_PRESETS else "whisper"},
        "augment": {"spec": {"freq_masks": 0, "time_masks": 0}},
    }
    temperature = 2.0 if preset.startswith("kd_distil_whisper") else 1.0
    recipe = Recipe.model_validate({**runs[temperature].recipe.model_dump(), **settings})
    summary = build_loop(recipe, PlainContext(torch.device("cpu")), tmp_path, "key").run()
    assert summary["dev_wer"] == 0.0
