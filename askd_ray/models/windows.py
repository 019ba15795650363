"""Whisper on trimmed windows: the encoder computes only the positions that the window has, not all 30 s."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class EncoderOutput:
    """Encoder states ``(batch, n_frames / 2, d_model)``: ``states`` after the last layer, ``tapped`` after others."""

    states: torch.Tensor
    tapped: tuple[torch.Tensor, ...] = ()


def encode(
    model: WhisperForConditionalGeneration, log_mel: torch.Tensor, tapped_layers: Sequence[int] = ()
) -> EncoderOutput:
    """Return the encoder states of a window ``(batch, n_mels, n_frames)`` of any length up to 30 s.

    The encoder of transformers requires 3,000 frames, but Whisper itself does not: its positions are sinusoids from the
    window's start, so a shorter window uses the first ones. At 3,000 frames both give the same states.
    """
    encoder = model.model.encoder
    hidden = functional.gelu(encoder.conv1(log_mel))
    hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    after: list[torch.Tensor] = []
    for layer in encoder.layers:
        hidden = layer(hidden, None)
        after.append(hidden)
    return EncoderOutput(encoder.layer_norm(hidden), tuple(after[i] for i in tapped_layers))


@dataclass(frozen=True)
class DecoderOutput:
    """The decoder's last hidden states ``(batch, length, d_model)``; the projection turns them into logits."""

    hidden: torch.Tensor
    encoded: EncoderOutput


class WindowedWhisper(nn.Module):
    """A Whisper whose forward pass takes windows of any length up to 30 s, and tokens.

    It returns hidden states, not logits: logits are large, and the objective computes them a few tokens at a time.
    ``tapped_layers``: encoder layers whose states are returned too. ``widths``: for each of them the teacher's width;
    where it differs from the student's, a learnt projection maps the states to it.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tapped_layers: Sequence[int] = (),
        widths: Sequence[int] = (),
    ):
        super().__init__()
        self.whisper = model
        self.tapped_layers = tuple(tapped_layers)
        self.shrunk = 0  # the number of the recipe's shrinkings behind it (models/student.py)
        width = model.config.d_model
        self.to_widths = nn.ModuleList(nn.Identity() if w == width else nn.Linear(width, w) for w in widths)

    @property
    def projection(self) -> torch.Tensor:
        """The output projection ``(n_vocab, d_model)`` from hidden states to logits; tied to the token embeddings."""
        return self.whisper.proj_out.weight

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, encoded: EncoderOutput | None = None
    ) -> DecoderOutput:
        """Return the hidden states at tokens ``(batch, length)``; ``encoded``, if given, replaces the encoder pass."""
        if encoded is None:
            encoded = encode(self.whisper, log_mel, self.tapped_layers)
        if self.to_widths:
            tapped = tuple(to(states) for to, states in zip(self.to_widths, encoded.tapped, strict=True))
            encoded = EncoderOutput(encoded.states, tapped)
        decoded = self.whisper.model.decoder(
            input_ids=decoder_ids, encoder_hidden_states=encoded.states, use_cache=False
        )
        return DecoderOutput(decoded.last_hidden_state, encoded)
