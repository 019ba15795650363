"""A model to be filled with weights."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration


def empty_whisper(config: WhisperConfig) -> WhisperForConditionalGeneration:
    """Return a model on the CPU whose parameters are not set yet: to draw random ones first takes seconds."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model = model.to_empty(device="cpu")
    model.tie_weights()  # each name got storage of its own
    return model
