"""A run small enough for unit tests: a Whisper of random weights with the real vocabulary, and synthetic clips."""

import copy
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.config.targets import Targets
from askd_ray.data.labels import SoftLabels, write_labels
from askd_ray.data.schema import Split, Utterance
from askd_ray.data.shards import read_table, shard_paths, to_table, to_utterances, write_table
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.text.tokens import Tokens

Model = tuple[WhisperForConditionalGeneration, Tokens]  # what load_whisper returns
WORDS = ("one two three", "press four", "thank you", "the number is nine", "goodbye", "please hold", "zero")


def clip(seed: int, text: str, split: Split) -> Utterance:
    rng = np.random.default_rng(seed)
    seconds = 0.4 + 0.1 * (seed % 5)
    t = np.arange(int(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 37 * seed) * t) + 0.01 * rng.standard_normal(len(t))
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    return Utterance(f"u{seed}", file.getvalue(), f"u{seed}.flac", text, seconds, "", "en", "tones", split, "none")


def label_of(utterance: Utterance) -> SoftLabels:
    """Labels of three tokens, of which the teacher gives one a probability of one half."""
    ids, half = np.arange(3, dtype=np.int32), np.full((3, 1), np.log(0.5), np.float16)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=(1, 2),
        target_ids=ids,
        left_out="",
        text="",
        top_ids=ids[:, None].astype(np.uint16),
        top_log_probs=half,
        rest_log_prob=half[:, 0],
        token_loss=-half[:, 0],
        states=np.zeros((3, 0, 0), np.float16),
    )


def write_tiny_model(folder: Path, model: Model) -> None:
    """Write a transformers folder: two layers of width 32, random weights, the vocabulary of a real model."""
    real, tokens = model
    torch.manual_seed(0)
    shape = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tiny = WhisperForConditionalGeneration(WhisperConfig(**(real.config.to_dict() | shape | heads)))
    tiny.generation_config = copy.deepcopy(real.generation_config)
    tiny.generation_config.update(alignment_heads=[[1, 0]])
    save_whisper(tiny, tokens, folder)


def write_labelled_run(runs_root: Path, model_folder: Path) -> Recipe:
    """Write shards and labels: 14 train clips in two shards, 3 dev clips. Returns their recipe."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "seed": 3,
            "runs_root": str(runs_root),
            "teacher": {"model": str(model_folder), "top_k": 4},
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
    recipe_of_labels = recipe.model_copy(update={"targets": Targets(states="all")})  # they serve all recipes
    for shard in shard_paths(run.shards, "train"):
        made = label(model, tokens, to_utterances(read_table(shard)), recipe_of_labels)
        write_labels(run.labels / shard.name, made, label_key(recipe_of_labels))
    return recipe


def record_as_labelled(run: Run, n_train: int = 14, n_dev: int = 3) -> None:
    """Write the records of the stages prepare and label, as if they had written the run's files."""
    counts, minutes = {"train": n_train, "dev": n_dev, "test": 0}, {"train": 0.1, "dev": 0.1, "test": 0.0}
    prepared = {"read": n_train + n_dev, "utterances": counts, "minutes": minutes, "quarantined": {}}
    run.finish("prepare", "shards", prepared, time.monotonic())
    labels = {"utterances": n_train, "labelled": n_train, "left_out": {}, "tokens": 100, "teacher_loss": 10.0}
    run.finish("label", "labels", labels, time.monotonic())


def with_search(recipe: Recipe, tune: dict[str, Any], **sections: Any) -> Recipe:
    """Give a labelled run a second domain in dev, and a search whose test data nobody can read."""
    run = Run(recipe)
    record_as_labelled(run, n_dev=6)
    calls = [replace(clip(30 + i, "press four", "dev"), domain="calls") for i in range(3)]
    write_table(run.shards / "dev-00001-of-00002.parquet", to_table(calls))
    (run.shards / "test-00000-of-00001.parquet").write_bytes(b"poison")
    poisoned = {"evaluate": {"sets": [{"name": "far", "path": "/there/is/no/such/folder"}]}}
    return Recipe.model_validate({**recipe.model_dump(mode="json"), **poisoned, **sections, "tune": tune})
