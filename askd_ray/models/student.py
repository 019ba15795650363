"""Student surgery: which layers of a model the student starts from."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Student
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper
from askd_ray.text.tokens import Tokens


def build_student(settings: Student, teacher_reference: str) -> tuple[WhisperForConditionalGeneration, Tokens]:
    """Return the student before training: its initial model with only the layers that the recipe keeps.

    Raises :class:`AskdError` when a layer index does not exist.
    """
    model, tokens = load_whisper(settings.init or teacher_reference)
    model = keep_layers(model, settings.encoder_layers, settings.decoder_layers)
    if settings.freeze_encoder:
        model.model.encoder.requires_grad_(False)
    return model, tokens


def keep_layers(
    model: WhisperForConditionalGeneration, encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> WhisperForConditionalGeneration:
    """Return a model with the named encoder and decoder layers only, in the order given; None keeps all."""
    encoder_layers = _checked("encoder", encoder_layers, model.config.encoder_layers)
    decoder_layers = _checked("decoder", decoder_layers, model.config.decoder_layers)
    config = copy.deepcopy(model.config)
    config.encoder_layers, config.decoder_layers = len(encoder_layers), len(decoder_layers)
    student = WhisperForConditionalGeneration(config)
    student.generation_config = _generation_config(model, decoder_layers)
    with torch.no_grad():
        for kept, part in ((encoder_layers, "encoder"), (decoder_layers, "decoder")):
            old, new = getattr(model.model, part), getattr(student.model, part)
            _copy_layers(old, new, kept)
    return student.eval()


def _checked(part: str, layers: Sequence[int] | None, n_layers: int) -> list[int]:
    if layers is None:
        return list(range(n_layers))
    if not layers or any(not 0 <= i < n_layers for i in layers):
        raise AskdError(f"student.{part}_layers = {list(layers)}: the model has layers 0 to {n_layers - 1}")
    return list(layers)


def _copy_layers(old: nn.Module, new: nn.Module, kept: Sequence[int]) -> None:
    state = {n: v for n, v in old.state_dict().items() if not n.startswith("layers.")}
    for position, index in enumerate(kept):
        layer = old.get_submodule(f"layers.{index}")
        state |= {f"layers.{position}.{n}": v for n, v in layer.state_dict().items()}
    new.load_state_dict(state, strict=True)


def _generation_config(model: WhisperForConditionalGeneration, decoder_layers: Sequence[int]) -> GenerationConfig:
    config = copy.deepcopy(model.generation_config)
    heads = getattr(config, "alignment_heads", None)
    if heads is not None:  # heads of layers that are gone would point beyond the decoder
        position = {layer: i for i, layer in enumerate(decoder_layers)}
        kept = [[position[layer], head] for layer, head in heads if layer in position]
        config.update(alignment_heads=kept)
    return config
