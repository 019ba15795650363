"""A run small enough for unit tests: a Whisper of random weights with the real vocabulary, and synthetic clips."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.schema import Split, Utterance
from askd_ray.data.shards import read_table, shard_paths, to_table, to_utterances, write_table
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key

WORDS = ("one two three", "press four", "thank you", "the number is nine", "goodbye", "please hold", "zero")


def clip(seed: int, text: str, split: Split) -> Utterance:
    rng = np.random.default_rng(seed)
    seconds = 0.4 + 0.1 * (seed % 5)
    t = np.arange(int(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 37 * seed) * t) + 0.01 * rng.standard_normal(len(t))
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    return Utterance(f"u{seed}", file.getvalue(), f"u{seed}.flac", text, seconds, "", "en", "tones", split, "none")


@pytest.fixture(scope="session")
def tiny_model(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: two layers of width 32, random weights, the vocabulary of tiny.en."""
    torch.manual_seed(0)
    real, tokens = load_whisper(str(weights))
    shape = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = WhisperForConditionalGeneration(WhisperConfig(**(real.config.to_dict() | shape | heads)))
    model.generation_config = real.generation_config
    model.generation_config.update(alignment_heads=[[1, 0]])
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_whisper(model, tokens, folder)
    return folder


@pytest.fixture(scope="session")
def labelled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose shards and labels are there: 14 train clips in two shards, 3 dev clips."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "seed": 3,
            "runs_root": str(tmp_path_factory.mktemp("runs")),
            "teacher": {"model": str(tiny_model), "top_k": 4},
            "window": {"padded_share": 0.0},
            "train": {"epochs": 2, "batching": {"utterances": 3}, "optimizer": {"lr": 5e-3, "encoder_lr": 5e-3}},
            "objective": {"self_teacher": {"switch": 0.4, "weight": 0.15, "refresh": 0.2}},
        }
    )
    run = Run(recipe)
    train = [clip(i, WORDS[i % len(WORDS)], "train") for i in range(14)]
    write_table(run.shards / "train-00000-of-00002.parquet", to_table(train[:7]))
    write_table(run.shards / "train-00001-of-00002.parquet", to_table(train[7:]))
    write_table(run.shards / "dev-00000-of-00001.parquet", to_table([clip(20 + i, WORDS[i], "dev") for i in range(3)]))
    model, tokens = load_whisper(recipe.teacher.model)
    for shard in shard_paths(run.shards, "train"):
        made = label(model, tokens, to_utterances(read_table(shard)), recipe)
        write_labels(run.labels / shard.name, made, label_key(recipe))
    return recipe


@pytest.fixture
def copy_of_run(labelled: Recipe, tmp_path: Path) -> Callable[[], Recipe]:
    """Return a copy of the labelled run that a test may change."""

    def copy() -> Recipe:
        shutil.copytree(Run(labelled).path, tmp_path / "runs" / labelled.name)
        return labelled.model_copy(update={"runs_root": str(tmp_path / "runs")})

    return copy
