"""Whisper on windows shorter than 30 s: only the positions that the audio fills are computed."""

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration


def encode(model: WhisperForConditionalGeneration, log_mel: torch.Tensor) -> torch.Tensor:
    """Return encoder states of any window: ``(batch, n_mels, n_frames)`` -> ``(batch, n_frames / 2, d_model)``.

    transformers' own encoder insists on 3,000 frames. Nothing in Whisper does: positions are sinusoids counted from
    the start, so a shorter window uses the first of them. At 3,000 frames the two are equal.
    """
    encoder = model.model.encoder
    hidden = functional.gelu(encoder.conv1(log_mel))
    hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


class WindowedWhisper(nn.Module):
    """A Whisper whose forward pass takes windows of any length up to 30 s, and tokens, and gives logits."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.whisper = model

    def forward(self, log_mel: torch.Tensor, decoder_ids: torch.Tensor) -> torch.Tensor:
        """Return next-token logits ``(batch, length, n_vocab)`` for tokens ``(batch, length)``."""
        states = encode(self.whisper, log_mel)
        decoded = self.whisper.model.decoder(input_ids=decoder_ids, encoder_hidden_states=states, use_cache=False)
        return self.whisper.proj_out(decoded.last_hidden_state)
