"""What the writers of ONNX folders share: the exporter, and a decoder in the operators of the ONNX standard."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

from askd_ray.models.fused_layers import split_heads

Quantization = Literal["float32", "int8"]
OPSET = 17
"""The first with LayerNormalization."""


@torch.no_grad()
def export_graph(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    file: Path,
    names: tuple[list[str], list[str]],
    axes: dict[str, dict[int, str]],
) -> None:
    """Write a module by tracing: no Python value in it depends on a length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = {name: dims for name, dims in axes.items() if name in (*names[0], *names[1])}
        torch.onnx.export(
            module.eval(),
            example,
            str(file),
            input_names=names[0],
            output_names=names[1],
            dynamic_axes=used,
            opset_version=OPSET,
            dynamo=False,
        )


class DecoderLayers(nn.Module):
    """The decoder without embeddings and projection, with its cache as input and output."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        decoder = model.model.decoder
        self.layers, self.layer_norm = decoder.layers, decoder.layer_norm
        self.positions = nn.Parameter(decoder.embed_positions.weight.detach())
        self.n_heads = model.config.decoder_attention_heads

    def read(
        self, embedded: torch.Tensor, past: Sequence[torch.Tensor], cross: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the hidden states at embedded tokens ``(batch, n, d_model)``, and the keys and values of all tokens.

        ``past`` and ``cross`` have keys and values of each layer in turn ``(batch, n_heads, length, width)``.
        """
        n_read = past[0].shape[2]
        total = n_read + embedded.shape[1]
        places = torch.arange(n_read, total)
        hidden = embedded + self.positions[places]
        later = torch.arange(total)[None] > places[:, None]
        mask = torch.zeros(later.shape).masked_fill(later, -torch.inf)
        present = list[torch.Tensor]()
        for i, layer in enumerate(self.layers):
            layer = cast(WhisperDecoderLayer, layer)
            attention = layer.self_attn
            inputs = layer.self_attn_layer_norm(hidden)
            new = [split_heads(project(inputs), self.n_heads) for project in (attention.k_proj, attention.v_proj)]
            keys, values = (torch.cat([past[2 * i + j], new[j]], dim=2) for j in (0, 1))
            present += [keys, values]
            hidden = hidden + _attend(attention, inputs, keys, values, mask)
            inputs = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + _attend(layer.encoder_attn, inputs, *cross[2 * i : 2 * i + 2])
            inputs = layer.final_layer_norm(hidden)
            hidden = hidden + layer.fc2(functional.gelu(layer.fc1(inputs)))
        return hidden, present


def _attend(
    attention: WhisperAttention,
    inputs: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    queries = split_heads(attention.q_proj(inputs) * attention.scaling, attention.num_heads)
    scores = queries @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
    return attention.out_proj(mixed)
