"""Whisper on trimmed windows: the encoder computes only the positions that the window has, not all 30 s.

:func:`encode` and :func:`decode` call the layers of transformers themselves.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.masking_utils import create_causal_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from askd_ray.models.student import DecoderOutput, EncoderOutput

_ALIGNED_KEYS = 8  # attention kernels of GPUs take masks whose rows are multiples of 8 apart


def encode(
    encoder: WhisperEncoder,
    log_mel: torch.Tensor,
    tapped_layers: Sequence[int] = (),
    window_frames: torch.Tensor | None = None,
) -> EncoderOutput:
    """Return the encoder states of windows ``(batch, n_mels, n_frames)`` of any length up to 30 s.

    The encoder of transformers requires 3,000 frames, but Whisper itself does not: its positions are sinusoids from the
    window's start, so a shorter window uses the first ones. At 3,000 frames both give the same states.

    ``window_frames`` (batch,) int64, even: rows with windows of their lengths, as
    :meth:`~askd_ray.models.student.StudentModel.forward` takes them. The zeros after a window are the zeros with which
    a convolution pads, and attention gets a mask.
    """
    hidden = functional.gelu(encoder.conv1(log_mel))
    hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    inside = key_mask = None
    if window_frames is not None:
        inside = inside_windows(window_frames // 2, hidden.shape[1])
        key_mask = mask_of_keys(inside, hidden)
    after: list[torch.Tensor] = []
    for layer in encoder.layers:
        hidden = layer(hidden, key_mask)
        after.append(hidden)
    tapped = tuple(after[i] for i in tapped_layers)
    return EncoderOutput(encoder.layer_norm(hidden), tapped, inside, key_mask)


def inside_windows(n_positions: torch.Tensor, length: int) -> torch.Tensor:
    """Return which of ``length`` positions are in each row's window ``(batch, length)``; ``n_positions`` (batch,)."""
    return torch.arange(length, device=n_positions.device) < n_positions[:, None]


def mask_of_keys(inside: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return the mask ``(batch, 1, 1, length)`` that is added to attention scores: 0 inside, -inf elsewhere.

    Every layer would convert a boolean mask, and a mask of another type than that in which the queries of ``states``
    are multiplied, or with rows that are not aligned.
    """
    n = inside.shape[1]
    aligned = functional.pad(inside, (0, -n % _ALIGNED_KEYS))
    mask = torch.zeros(aligned.shape, dtype=_matmul_type(states), device=states.device)
    return mask.masked_fill_(~aligned, -torch.inf)[:, None, None, :n]


def _matmul_type(tensor: torch.Tensor) -> torch.dtype:
    """Return the type in which a tensor is multiplied: with autocast another one than the tensor's."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _to_matmul_type(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    """A hook that casts a layer norm's output once; otherwise each of query, key and value casts and keeps it."""
    return output.to(_matmul_type(output))


def decode(
    model: WhisperForConditionalGeneration, decoder_ids: torch.Tensor, encoded: EncoderOutput
) -> tuple[torch.Tensor, ...]:
    """Return the hidden states ``(batch, length, d_model)`` at tokens ``(batch, length)`` after each decoder layer.

    The last ones are after the decoder's final norm: the projection turns them into logits. All tokens are given, so
    there is no cache. transformers computes the same, bit for bit, but gives its layers no mask over encoder states.
    """
    decoder = model.model.decoder
    hidden = decoder.embed_tokens(decoder_ids) + decoder.embed_positions.weight[: decoder_ids.shape[1]]
    hidden = functional.dropout(hidden, p=decoder.dropout, training=decoder.training)
    causal_mask = create_causal_mask(decoder.config, hidden, attention_mask=None, past_key_values=None)
    states = encoded.states.to(_matmul_type(encoded.states))  # once, not in each layer for its keys and its values
    after: list[torch.Tensor] = []
    for layer in decoder.layers:
        hidden = layer(hidden, causal_mask, states, encoder_attention_mask=encoded.key_mask, use_cache=False)
        after.append(hidden)
    return (*after[:-1], decoder.layer_norm(hidden))


def prepare_layers(layers: Sequence[nn.Module]) -> None:
    """Let layers of an encoder or decoder cast their input to the type of their matrix products once."""
    for layer in layers:
        norm = layer.get_submodule("self_attn_layer_norm")
        if _to_matmul_type not in norm._forward_hooks.values():  # pyright: ignore[reportPrivateUsage]
            norm.register_forward_hook(_to_matmul_type)


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
        prepare_layers(self.layers())

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

    def encode(self, log_mel: torch.Tensor, window_frames: torch.Tensor | None = None) -> EncoderOutput:
        """Return the encoder states of windows ``(batch, n_mels, n_frames)``; see :func:`encode`."""
        return encode(self.whisper.model.encoder, log_mel, self.tapped_layers, window_frames)

    def read_by_decoder(self, encoded: EncoderOutput) -> EncoderOutput:
        """Return the states that the decoder reads: those of the encoder."""
        return encoded

    def forward(
        self,
        log_mel: torch.Tensor,
        decoder_ids: torch.Tensor,
        window_frames: torch.Tensor | None = None,
        encoded: EncoderOutput | None = None,
    ) -> DecoderOutput:
        """Return the hidden states at tokens ``(batch, length)``; ``encoded``, if given, replaces the encoder pass."""
        if encoded is None:
            encoded = self.encode(log_mel, window_frames)
        after = decode(self.whisper, decoder_ids, self.read_by_decoder(encoded))
        tapped = {teacher_layer: after[layer] for teacher_layer, layer in self.decoder_layers.items()}
        return DecoderOutput(after[-1], encoded, tapped)
