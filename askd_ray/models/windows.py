"""Whisper on windows shorter than 30 s: only the positions that the audio fills are computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class EncoderOutput:
    """Encoder states ``(batch, n_frames / 2, d_model)``: the last ones, and those after each layer asked for."""

    states: torch.Tensor
    tapped: tuple[torch.Tensor, ...] = ()


def encode(
    model: WhisperForConditionalGeneration, log_mel: torch.Tensor, tapped_layers: Sequence[int] = ()
) -> EncoderOutput:
    """Return the encoder states of any window ``(batch, n_mels, n_frames)``.

    transformers' own encoder insists on 3,000 frames. Nothing in Whisper does: positions are sinusoids counted from
    the start, so a shorter window uses the first of them. At 3,000 frames the two are equal.
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
    """The decoder's last hidden states ``(batch, length, d_model)``, of which the projection makes logits."""

    hidden: torch.Tensor
    encoded: EncoderOutput


class WindowedWhisper(nn.Module):
    """A Whisper whose forward pass takes windows of any length up to 30 s, and tokens.

    It stops before the vocabulary: logits are large, and the objective makes them a few tokens at a time.
    ``tapped_layers`` are encoder layers whose states are wanted too; ``widths`` the teacher's width for each, where a
    projection to it is to be learnt.
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
        self.shrunk = 0  # how many of the recipe's shrinkings it has gone through (models/student.py)
        width = model.config.d_model
        self.to_widths = nn.ModuleList(nn.Identity() if w == width else nn.Linear(width, w) for w in widths)

    @property
    def projection(self) -> torch.Tensor:
        """The weight ``(n_vocab, d_model)`` that makes logits of hidden states; tied to the token embeddings."""
        return self.whisper.proj_out.weight

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, encoded: EncoderOutput | None = None
    ) -> DecoderOutput:
        """Return the hidden states at tokens ``(batch, length)``; ``encoded`` stands in for the encoder's own work."""
        if encoded is None:
            encoded = encode(self.whisper, log_mel, self.tapped_layers)
        if self.to_widths:
            tapped = tuple(to(states) for to, states in zip(self.to_widths, encoded.tapped, strict=True))
            encoded = EncoderOutput(encoded.states, tapped)
        decoded = self.whisper.model.decoder(
            input_ids=decoder_ids, encoder_hidden_states=encoded.states, use_cache=False
        )
        return DecoderOutput(decoded.last_hidden_state, encoded)
