"""Whisper on trimmed windows: the encoder computes only the positions that the window has, not all 30 s."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from askd_ray.models.student import DecoderOutput, EncoderOutput


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


class WindowedWhisper(nn.Module):
    """A Whisper whose forward pass takes windows of any length up to 30 s, and tokens.

    It returns hidden states, not logits: logits are large. ``tapped_layers``: encoder layers whose states are returned
    too. ``decoder_layers``: decoder layers whose states are returned too, by the teacher's layer that they are compared
    with; the states of the last layer are those after the final layer norm.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tapped_layers: Sequence[int] = (),
        decoder_layers: Mapping[int, int] | None = None,
    ):
        super().__init__()
        self.whisper = model
        self.tapped_layers = tuple(tapped_layers)
        self.decoder_layers = dict(decoder_layers or {})

    @property
    def n_mels(self) -> int:
        """The number of mel channels of its windows."""
        return self.whisper.config.num_mel_bins

    @property
    def projection(self) -> torch.Tensor:
        """The output projection ``(n_vocab, d_model)`` from hidden states to logits; tied to the token embeddings."""
        return self.whisper.proj_out.weight

    def layers(self) -> list[nn.Module]:
        """Return the layers of encoder and decoder."""
        return [*self.whisper.model.encoder.layers, *self.whisper.model.decoder.layers]

    def encode(self, log_mel: torch.Tensor) -> EncoderOutput:
        """Return the encoder states of a window ``(batch, n_mels, n_frames)``."""
        return encode(self.whisper, log_mel, self.tapped_layers)

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, encoded: EncoderOutput | None = None
    ) -> DecoderOutput:
        """Return the hidden states at tokens ``(batch, length)``; ``encoded``, if given, replaces the encoder pass."""
        if encoded is None:
            encoded = self.encode(log_mel)
        decoded = self.whisper.model.decoder(
            input_ids=decoder_ids,
            encoder_hidden_states=encoded.states,
            use_cache=False,
            output_hidden_states=bool(self.decoder_layers),
        )
        after = (decoded.hidden_states or ())[1:]  # the first are the embeddings
        tapped = {teacher_layer: after[layer] for teacher_layer, layer in self.decoder_layers.items()}
        return DecoderOutput(decoded.last_hidden_state, encoded, tapped)
