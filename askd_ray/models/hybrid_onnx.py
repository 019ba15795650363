"""Writes a hybrid student as an ONNX folder, which :class:`askd_ray.models.draft_engine.DraftEngine` reads.

encoder.onnx     log_mel (1, n_mels, n_frames) -> keys and values of cross-attention for each decoder layer, and
                 log_probs (1, n_frames / 2, n_classes) if there is a CTC head
decoder.onnx     any number of tokens (1, n), the keys and values of those before, and of the window -> logits after
                 the tokens from ``first`` on, and the keys and values of all tokens
config.json      shapes, suppressed tokens, the token of each class after the blank, and the smallest difference of
                 two logits that passes over several tokens and passes over one both get right
tokenizer.json   Whisper's
"""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.files import atomic_path, write_json
from askd_ray.models.ctc import HEAD_FILE, CtcHead, load_head
from askd_ray.models.load import load_whisper
from askd_ray.models.reference import resolve
from askd_ray.models.row_quantization import (
    OUTLIERS,
    QuantizedEmbedding,
    RowQuantizedLinear,
    column_scale,
    quantize_linears,
)
from askd_ray.models.windows import encode

Quantization = Literal["float32", "int8"]
ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"
_MIN_MARGINS: dict[Quantization, float] = {"float32": 0.001, "int8": 0.15}
"""Differences of two logits that rounding can turn round: it changes them by at most 0.11 in int8 (tiny.en)."""
OPSET = 17
"""The first with LayerNormalization."""


def write_hybrid_onnx(reference: str, target: Path, quantization: Quantization) -> None:
    """Write a Whisper as an ONNX folder, atomically, with the CTC head that lies in its folder, if there is one.

    ``int8``: the weights of matrix products are int8, with a scale for each column, and their inputs are rounded to 8
    or 15 bits when the model runs, with a scale for each row (:mod:`askd_ray.models.row_quantization`).

    Raises :class:`AskdError` when there is no such model or its files are damaged.
    """
    model, tokens = load_whisper(reference)
    folder = resolve(reference)
    head = load_head(folder) if (folder / HEAD_FILE).is_file() else None
    config, generation = model.config, model.generation_config
    with atomic_path(target) as temporary:
        temporary.mkdir()
        encoder, decoder = _Encoder(model, head), _Decoder(model)
        if quantization == "int8":
            quantize_linears(encoder, with_outliers=OUTLIERS)
            columns = column_scale(model.proj_out, decoder.layer_norm)
            decoder.embed_tokens = QuantizedEmbedding(model.model.decoder.embed_tokens.weight, columns)
            decoder.projection = RowQuantizedLinear(model.proj_out, digits=2, columns=columns)
            quantize_linears(decoder, digits=2)  # the encoder always reads one whole window
        layers = range(config.decoder_layers)
        cross = [f"cross_{part}_{i}" for i in layers for part in ("key", "value")]
        log_mel = torch.zeros(1, config.num_mel_bins, 3 * FRAMES_PER_S)
        with torch.no_grad():
            states = encoder(log_mel)[: len(cross)]
        outputs = [*cross, *(["log_probs"] if head is not None else [])]
        axes = {"log_mel": {2: "frames"}, "log_probs": {1: "positions"}} | {name: {2: "positions"} for name in cross}
        export_graph(encoder, (log_mel,), temporary / ENCODER_FILE, (["log_mel"], outputs), axes)
        past = torch.zeros(2 * len(layers), decoder.n_heads, 3, config.d_model // decoder.n_heads)
        example = (torch.zeros(1, 5, dtype=torch.long), torch.tensor(2), past, *states)
        axes |= {"ids": {1: "tokens"}, "past": {2: "read"}, "present": {2: "total"}, "logits": {1: "outputs"}}
        names = ["ids", "first", "past", *cross], ["logits", "present"]
        export_graph(decoder, example, temporary / DECODER_FILE, names, axes)
        shutil.copyfile(tokens.file, temporary / "tokenizer.json")
        settings = {
            "num_mel_bins": config.num_mel_bins,
            "past_shape": [past.shape[0], past.shape[1], past.shape[3]],
            "min_margin": _MIN_MARGINS[quantization],
            "suppress_tokens": generation.suppress_tokens or [],
            "begin_suppress_tokens": generation.begin_suppress_tokens or [],
            "token_ids": list(head.vocabulary.token_ids) if head is not None else [],
        }
        write_json(temporary / "config.json", settings)


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


class _Encoder(nn.Module):
    """The encoder, the projections of its states to the decoder's keys and values, and the CTC head."""

    def __init__(self, model: WhisperForConditionalGeneration, head: CtcHead | None):
        super().__init__()
        self.encoder = model.model.encoder
        self.attentions = nn.ModuleList(layer.get_submodule("encoder_attn") for layer in model.model.decoder.layers)
        self.head = head
        if head is not None:
            self.ctc_projection = nn.Linear(*reversed(head.projection.shape), bias=False)
            self.ctc_projection.weight = head.projection

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = encode(self.encoder, log_mel).states
        found = list[torch.Tensor]()
        for attention in self.attentions:
            attention = cast(WhisperAttention, attention)
            found += [
                split_heads(project(states), attention.num_heads) for project in (attention.k_proj, attention.v_proj)
            ]
        if self.head is not None:
            found.append(self.ctc_projection(self.head(states)).log_softmax(dim=-1))
        return tuple(found)


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


class _Decoder(DecoderLayers):
    """The decoder with a cache in one tensor: ``past`` (2 n_layers, n_heads, n_read, width of a head)."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__(model)
        self.embed_tokens: nn.Module = model.model.decoder.embed_tokens
        self.projection: nn.Module = model.proj_out

    def forward(
        self, ids: torch.Tensor, first: torch.Tensor, past: torch.Tensor, *cross: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        read = [past[i][None] for i in range(2 * len(self.layers))]
        hidden, present = self.read(self.embed_tokens(ids), read, cross)
        logits = self.projection(self.layer_norm(hidden[:, first:]))
        return logits, torch.cat(present)


def split_heads(states: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return states ``(batch, length, d_model)`` by head: ``(batch, n_heads, length, width)``."""
    return states.unflatten(-1, (n_heads, -1)).transpose(1, 2)


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
