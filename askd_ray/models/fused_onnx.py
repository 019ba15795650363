"""Writes a Whisper as an ONNX folder for ONNX Runtime, in its fused operators (:mod:`askd_ray.models.fused_layers`).

encoder.onnx     log_mel (1, n_mels, n_frames) -> keys and values of cross-attention for each decoder layer, padded to a
                 multiple of 16 positions, and ctc_log_probs (1, n_frames / 2, n_classes) if there is a CTC head
decoder.onnx     any number of tokens (batch, n), the keys and values of those before, those of the windows, and the
                 number of positions in each -> log_probs (batch, n - first, n_vocab) after the tokens from ``first``
                 on, -inf for tokens that are never written, and the keys and values of all tokens
config.json      shapes, tokens that no text begins with, the token of each class after the blank, and the smallest
                 difference of two log_probs that passes over several tokens and passes over one both get right
tokenizer.json   Whisper's

:class:`askd_ray.models.onnx_engine.OnnxEngine` and :class:`askd_ray.models.draft_engine.DraftEngine` read it.
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer, WhisperEncoderLayer

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.files import atomic_path, write_json
from askd_ray.models.ctc import HEAD_FILE, CtcHead, load_head
from askd_ray.models.fused_layers import (
    BlockQuantized,
    RowQuantized,
    attention,
    causal_attention,
    joined,
    replace_linears,
    split_heads,
)
from askd_ray.models.load import load_whisper
from askd_ray.models.onnx_export import Quantization, export_graph
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE
from askd_ray.models.reference import resolve
from askd_ray.models.row_quantization import column_scale

_MULTIPLE_OF_POSITIONS = 16
"""Windows are padded to a multiple of it: what is read there is rounded alike with any more padding."""
_MIN_MARGINS: dict[Quantization, float] = {"float32": 0.001, "int8": 0.15}
"""Differences of two logits that rounding can turn round: it changes them by at most 0.11 in int8 (tiny.en)."""


def write_fused_onnx(reference: str, target: Path, quantization: Quantization) -> None:
    """Write a Whisper as an ONNX folder, atomically, with the CTC head that lies in its folder, if there is one.

    ``int8``: the weights of matrix products have 8 bits, and so have their inputs when the model runs.

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
            decoder.balance_columns()
            replace_linears(encoder, RowQuantized)
            replace_linears(decoder, BlockQuantized)
            decoder.embeddings.data = decoder.embeddings.half()  # only read, never multiplied
        layers = range(config.decoder_layers)
        cross = [f"cross_{part}_{i}" for i in layers for part in ("key", "value")]
        log_mel = torch.zeros(1, config.num_mel_bins, 3 * FRAMES_PER_S)
        with torch.no_grad():
            states = encoder(log_mel)[: len(cross)]
        outputs = [*cross, *(["ctc_log_probs"] if head is not None else [])]
        axes = {"log_mel": {2: "frames"}, "ctc_log_probs": {1: "positions"}}
        axes |= {name: {2: "positions"} for name in cross}
        export_graph(encoder, (log_mel,), temporary / ENCODER_FILE, (["log_mel"], outputs), axes)
        past = torch.zeros(2 * len(layers), 1, decoder.n_heads, 3, config.d_model // decoder.n_heads)
        lengths = torch.full((1,), states[0].shape[2], dtype=torch.int32)
        example = (torch.zeros(1, 5, dtype=torch.long), torch.tensor(2), past, lengths, *states)
        axes = {name: {0: "batch", 2: "positions"} for name in cross}
        axes |= {"ids": {0: "batch", 1: "tokens"}, "lengths": {0: "batch"}, "log_probs": {0: "batch", 1: "outputs"}}
        axes |= {"past": {1: "batch", 3: "read"}, "present": {1: "batch", 3: "total"}}
        names = ["ids", "first", "past", "lengths", *cross], ["log_probs", "present"]
        export_graph(decoder, example, temporary / DECODER_FILE, names, axes)
        shutil.copyfile(tokens.file, temporary / "tokenizer.json")
        settings = {
            "num_mel_bins": config.num_mel_bins,
            "past_shape": [past.shape[0], past.shape[2], past.shape[4]],
            "min_margin": _MIN_MARGINS[quantization],
            "begin_suppress_tokens": generation.begin_suppress_tokens or [],
            "token_ids": list(head.vocabulary.token_ids) if head is not None else [],
        }
        write_json(temporary / "config.json", settings)


class _Encoder(nn.Module):
    """The encoder, the projections of its states to the decoder's keys and values, and the CTC head."""

    def __init__(self, model: WhisperForConditionalGeneration, head: CtcHead | None):
        super().__init__()
        encoder, config = model.model.encoder, model.config
        conv1 = _side_by_side(encoder.conv1)
        self.conv1_weight, self.conv1_bias = conv1.weight, conv1.bias  # no layer, so it stays in float32
        self.conv2 = _side_by_side(encoder.conv2)
        self.norm = encoder.layer_norm
        self.positions = nn.Parameter(encoder.embed_positions.weight.detach())
        self.layers = nn.ModuleList(
            _EncoderLayer(cast(WhisperEncoderLayer, layer), config.encoder_attention_heads) for layer in encoder.layers
        )
        of_window = [cast(WhisperDecoderLayer, layer).encoder_attn for layer in model.model.decoder.layers]
        self.cross = joined([projection for a in of_window for projection in (a.k_proj, a.v_proj)])
        self.n_heads, self.n_parts = config.decoder_attention_heads, 2 * len(of_window)
        self.head = head
        if head is not None:
            self.transform = head.transform
            self.ctc_projection = nn.Linear(*reversed(head.projection.shape), bias=False)
            self.ctc_projection.weight = head.projection
            self.ctc_projection = joined([self.ctc_projection])

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        frames = functional.pad(log_mel.transpose(1, 2), (0, 0, 1, 1))
        near = torch.cat([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], dim=-1)
        hidden = functional.gelu(functional.linear(near, self.conv1_weight, self.conv1_bias))
        hidden = functional.pad(hidden, (0, 0, 1, 0))
        near = torch.cat([hidden[:, :-1:2], hidden[:, 1::2], hidden[:, 2::2]], dim=-1)
        hidden = functional.gelu(self.conv2(near))
        hidden = hidden + self.positions[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        states = self.norm(hidden)
        whole = functional.pad(states, (0, 0, 0, -states.shape[1] % _MULTIPLE_OF_POSITIONS))
        by_head = split_heads(self.cross(whole), self.n_parts * self.n_heads)
        found = list(by_head.split(self.n_heads, dim=1))
        if self.head is not None:
            found.append(self.ctc_projection(self.transform(states)).log_softmax(dim=-1))
        return tuple(found)


def _side_by_side(convolution: nn.Conv1d) -> nn.Linear:
    """Return a convolution over three frames as a product with three frames side by side."""
    weight = convolution.weight.detach().transpose(1, 2).flatten(1)
    result = nn.Linear(weight.shape[1], weight.shape[0])
    result.weight.data, result.bias.data = weight, convolution.get_parameter("bias").detach()
    return result


class _EncoderLayer(nn.Module):
    def __init__(self, layer: WhisperEncoderLayer, n_heads: int):
        super().__init__()
        inner = layer.self_attn
        self.norm1, self.norm2, self.n_heads = layer.self_attn_layer_norm, layer.final_layer_norm, n_heads
        self.projection = joined([inner.q_proj, inner.k_proj, inner.v_proj])
        self.out, self.fc1, self.fc2 = (joined([linear]) for linear in (inner.out_proj, layer.fc1, layer.fc2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.projection(self.norm1(hidden)).split(hidden.shape[-1], dim=-1)
        hidden = hidden + self.out(attention(queries, keys, values, self.n_heads))
        return hidden + self.fc2(functional.gelu(self.fc1(self.norm2(hidden))))


class _Decoder(nn.Module):
    """The decoder with a cache in one tensor: ``past`` (2 n_layers, batch, n_heads, n_read, width of a head)."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        decoder, config = model.model.decoder, model.config
        self.n_heads, self.norm = config.decoder_attention_heads, decoder.layer_norm
        self.embeddings = nn.Parameter(decoder.embed_tokens.weight.detach(), requires_grad=False)
        self.positions = nn.Parameter(decoder.embed_positions.weight.detach())
        self.layers = nn.ModuleList(
            _DecoderLayer(cast(WhisperDecoderLayer, layer), self.n_heads) for layer in decoder.layers
        )
        self.projection = joined([model.proj_out])
        self.projection.bias.data[model.generation_config.suppress_tokens or []] = -torch.inf

    def balance_columns(self) -> None:
        """Move the sizes of the projection's columns into the norm before it: both together compute the same."""
        columns = column_scale(self.projection, self.norm)
        self.projection.weight.data = self.projection.weight * columns
        self.norm = copy.deepcopy(self.norm)
        for parameter in (self.norm.weight, self.norm.bias):
            parameter.data = parameter / columns

    def forward(
        self, ids: torch.Tensor, first: torch.Tensor, past: torch.Tensor, lengths: torch.Tensor, *cross: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        n_read = past.shape[3]
        hidden = self.embeddings[ids].float() + self.positions[n_read : n_read + ids.shape[1]]
        present = list[torch.Tensor]()
        for i, layer in enumerate(self.layers):
            cache = [past[2 * i + part] for part in (0, 1)]
            hidden, keys, values = layer(hidden, cache, cross[2 * i : 2 * i + 2], lengths)
            present += [keys, values]
        return self.projection(self.norm(hidden[:, first:])).log_softmax(dim=-1), torch.stack(present)


class _DecoderLayer(nn.Module):
    def __init__(self, layer: WhisperDecoderLayer, n_heads: int):
        super().__init__()
        inner, cross = layer.self_attn, layer.encoder_attn
        self.norm1, self.norm2 = layer.self_attn_layer_norm, layer.encoder_attn_layer_norm
        self.norm3, self.n_heads = layer.final_layer_norm, n_heads
        self.projection = joined([inner.q_proj, inner.k_proj, inner.v_proj])
        others = (inner.out_proj, cross.q_proj, cross.out_proj, layer.fc1, layer.fc2)
        self.out, self.cross_query, self.cross_out, self.fc1, self.fc2 = (joined([linear]) for linear in others)

    def forward(
        self, hidden: torch.Tensor, past: Sequence[torch.Tensor], cross: Sequence[torch.Tensor], lengths: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        window_keys, window_values = cross
        projected = self.projection(self.norm1(hidden)).split(hidden.shape[-1], dim=-1)
        read, *present = causal_attention(projected, past, self.n_heads)
        hidden = hidden + self.out(read)
        queries = self.cross_query(self.norm2(hidden))
        hidden = hidden + self.cross_out(attention(queries, window_keys, window_values, self.n_heads, lengths))
        return hidden + self.fc2(functional.gelu(self.fc1(self.norm3(hidden)))), *present
