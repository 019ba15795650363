"""A Whisper of random weights that writes many different tokens, for engines that must agree token by token."""

from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.text.tokens import Tokens


def write_random_student(folder: Path, tiny_model: Path, tokens: Tokens | None = None, **sizes: int) -> None:
    """Write a transformers folder: width 32, two encoder layers and one decoder layer, as few as no Whisper has.

    ``tokens`` are those of another model, whose vocabulary it gets; ``sizes`` are settings of its config.
    """
    model, tokens_of_tiny = load_whisper(str(tiny_model))
    torch.manual_seed(0)
    shape = {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "decoder_layers": 1, **sizes}
    student = WhisperForConditionalGeneration(WhisperConfig(**{**model.config.to_dict(), **shape}))
    student.generation_config = model.generation_config
    with torch.no_grad():
        student.model.decoder.embed_positions.weight.mul_(60.0)
        student.model.decoder.layer_norm.weight.mul_(40.0)  # so that few calls are close
    save_whisper(student, tokens or tokens_of_tiny, folder)
