"""An uninitialised model, to be filled with weights."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration


def empty_whisper(config: WhisperConfig) -> WhisperForConditionalGeneration:
    """Return a model on the CPU with uninitialised parameters: random initialisation would take seconds."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model = model.to_empty(device="cpu")
    model.tie_weights()  # to_empty gave tied parameters separate storage
    return model
