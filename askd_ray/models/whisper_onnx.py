"""Writes a Whisper as an ONNX folder in the layout of model hubs, which transformers.js, onnx-asr and others load.

onnx/encoder_model.onnx          input_features (batch, n_mels, n_frames), any even number of frames up to 3,000 ->
                                 last_hidden_state (batch, n_frames / 2, d_model)
onnx/decoder_model_merged.onnx   input_ids (batch, n), encoder_hidden_states, the keys and values of the tokens before
                                 and of the window, and use_cache_branch (1,) -> logits (batch, n, n_vocab), and the
                                 keys and values of all tokens and of the window
onnx/*_quantized.onnx            the same with int8 weights (:mod:`askd_ray.models.row_quantization`)
*.json                           config, generation, preprocessor and tokenizer, as in a transformers folder, and
                                 vocab.json and added_tokens.json, which onnx-asr reads

With ``use_cache_branch`` false, keys and values of the inputs are ignored, whatever their shapes, and those of the
window are computed; with true, they are taken from the inputs, and encoder_hidden_states is ignored.

Source of the layout: huggingface/optimum-onnx (exporters/onnx), and the models of onnx-community on the hub.
"""

import shutil
import tempfile
from pathlib import Path
from typing import cast

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.files import atomic_path, read_json, write_json
from askd_ray.models.fused_layers import split_heads
from askd_ray.models.load import load_whisper
from askd_ray.models.onnx_export import OPSET, DecoderLayers, Quantization, export_graph
from askd_ray.models.onnx_folder import WHISPER_INT8_FILES
from askd_ray.models.row_quantization import OUTLIERS, RowQuantizedLinear, column_scale, quantize_linears
from askd_ray.models.windows import encode

ONNX_FILES: dict[Quantization, tuple[str, str]] = {
    "float32": ("onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"),
    "int8": WHISPER_INT8_FILES,
}
"""The files of encoder and decoder in a folder of :func:`write_whisper_onnx`."""


def write_whisper_onnx(source: Path, target: Path) -> None:
    """Write the transformers folder of a Whisper as an ONNX folder, in float32 and in int8, atomically.

    Raises :class:`AskdError` when there is no such model or its files are damaged.
    """
    with atomic_path(target) as temporary:
        (temporary / "onnx").mkdir(parents=True)
        for file in sorted(source.glob("*.json")):
            shutil.copyfile(file, temporary / file.name)
        _write_vocabulary(temporary)
        for quantization in ONNX_FILES:
            model, _ = load_whisper(str(source))  # anew, because quantization replaces its layers
            _write_graphs(model, temporary, quantization)


def cache_names(n_layers: int, of: str) -> list[str]:
    """Return the names of a decoder's keys and values of ``past_key_values`` or ``present``: tokens, then window."""
    return [
        f"{of}.{layer}.{reads}.{part}"
        for reads in ("decoder", "encoder")
        for layer in range(n_layers)
        for part in ("key", "value")
    ]


def _write_vocabulary(folder: Path) -> None:
    """Write the tokens of tokenizer.json in the files of older tokenizers."""
    content = read_json(folder / "tokenizer.json")
    write_json(folder / "vocab.json", content["model"]["vocab"])
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in content["added_tokens"]})


def _write_graphs(model: WhisperForConditionalGeneration, folder: Path, quantization: Quantization) -> None:
    config, (encoder_file, decoder_file) = model.config, ONNX_FILES[quantization]
    n_cache = 2 * config.decoder_layers
    past, cross = (cache_names(config.decoder_layers, "past_key_values")[i : i + n_cache] for i in (0, n_cache))
    encoder, window, decoder = _Encoder(model), _WindowKeys(model), _Decoder(model)
    if quantization == "int8":
        quantize_linears(encoder, with_outliers=OUTLIERS)
        quantize_linears(window)
        columns = column_scale(model.proj_out, decoder.layer_norm)
        decoder.projection = RowQuantizedLinear(model.proj_out, digits=2, columns=columns)
        quantize_linears(decoder, digits=2)
    else:
        decoder.projection = _Projection(decoder.projection)
    log_mel = torch.zeros(2, config.num_mel_bins, 3 * FRAMES_PER_S)
    with torch.no_grad():
        states = encoder(log_mel)
        keys = window(states)
    axes = {"input_features": {0: "batch", 2: "frames"}, "logits": {0: "batch", 1: "tokens"}}
    axes |= {name: {0: "batch", 1: "positions"} for name in ("last_hidden_state", "encoder_hidden_states")}
    axes |= {name: {0: "batch", 2: "positions"} for name in cross}
    names = ["input_features"], ["last_hidden_state"]
    export_graph(encoder, (log_mel,), folder / encoder_file, names, axes)
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch) / "window.onnx", Path(scratch) / "decoder.onnx"
        export_graph(window, (states,), parts[0], (["encoder_hidden_states"], cross), axes)
        read = torch.zeros(2, decoder.n_heads, 3, config.d_model // decoder.n_heads)
        example = (torch.zeros(2, 5, dtype=torch.long), *[read] * n_cache, *keys)
        axes |= {name: {0: "batch", 2: "read"} for name in past} | {"input_ids": {0: "batch", 1: "tokens"}}
        present = cache_names(config.decoder_layers, "present")[:n_cache]
        axes |= {name: {0: "batch", 2: "total"} for name in present}
        export_graph(decoder, example, parts[1], (["input_ids", *past, *cross], ["logits", *present]), axes)
        onnx.save(merge_decoder(*map(onnx.load, parts)), folder / decoder_file)


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.encoder: WhisperEncoder = model.model.encoder

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        return encode(self.encoder, log_mel).states


class _WindowKeys(nn.Module):
    """The projections of the encoder's states to keys and values of the decoder's layers."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.attentions = nn.ModuleList(layer.get_submodule("encoder_attn") for layer in model.model.decoder.layers)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attentions = [cast(WhisperAttention, attention) for attention in self.attentions]
        return tuple(
            split_heads(project(states), attention.num_heads)
            for attention in attentions
            for project in (attention.k_proj, attention.v_proj)
        )


class _Decoder(DecoderLayers):
    """The decoder with a cache of one tensor for the keys, and one for the values, of each layer.

    The embeddings are columns of the projection, so that a file has the largest matrix once.
    """

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__(model)
        self.n_past = 2 * model.config.decoder_layers
        self.projection: nn.Module = model.proj_out

    def forward(self, ids: torch.Tensor, *cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        projection = self.projection
        assert isinstance(projection, _Projection | RowQuantizedLinear)
        embedded = projection.weight[:, ids].permute(1, 2, 0)
        if isinstance(projection, RowQuantizedLinear):
            assert projection.columns is not None
            embedded = embedded.float() * projection.scale[ids][..., None] / projection.columns
        hidden, present = self.read(embedded, cache[: self.n_past], cache[self.n_past :])
        return (projection(self.layer_norm(hidden)), *present)


class _Projection(nn.Module):
    """A projection without a bias, whose weight is ``(n_in, n_out)``: a graph has another one twice."""

    weight: torch.Tensor

    def __init__(self, linear: nn.Module):
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.register_buffer("weight", linear.weight.detach().T.contiguous())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight


def merge_decoder(window: onnx.ModelProto, decoder: onnx.ModelProto) -> onnx.ModelProto:
    """Return the decoder with ``use_cache_branch``: an If takes keys and values from the inputs, or begins anew.

    ``window`` has encoder_hidden_states -> the keys and values of the window; ``decoder`` input_ids and all keys and
    values -> logits and the keys and values of all tokens.
    """
    window = compose.add_prefix(window, "window/", rename_inputs=False)
    cache = [value for value in decoder.graph.input if value.name != "input_ids"]
    of_window = [value.name.removeprefix("window/") for value in window.graph.output]
    used = {value.name: f"used/{value.name}" for value in cache}
    used |= {name: name.replace("past_key_values", "present") for name in of_window}
    read = [value for value in cache if value.name not in of_window]
    _, n_heads, _, width = (dim.dim_value for dim in read[0].type.tensor_type.shape.dim)
    none_read = [
        helper.make_node("Shape", ["encoder_hidden_states"], ["window/batch"], start=0, end=1),
        helper.make_node("Constant", [], ["window/none"], value_ints=[n_heads, 0, width]),
        helper.make_node("Concat", ["window/batch", "window/none"], ["window/shape"], axis=0),
        *(helper.make_node("ConstantOfShape", ["window/shape"], [f"window/{value.name}"]) for value in read),
    ]
    branches = {
        "then_branch": ([helper.make_node("Identity", [v.name], [f"given/{v.name}"]) for v in cache], "given/"),
        "else_branch": ([*window.graph.node, *none_read], "window/"),
    }
    choice = helper.make_node("If", ["use_cache_branch"], [used[value.name] for value in cache])
    for branch, (nodes, prefix) in branches.items():
        outputs = [_keys(prefix + value.name, n_heads, width) for value in cache]
        choice.attribute.append(helper.make_attribute(branch, helper.make_graph(nodes, branch, [], outputs)))
    for node in decoder.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = used.get(name, name)
    graph = helper.make_graph(
        [choice, *decoder.graph.node],
        "decoder_model_merged",
        [
            *(value for value in decoder.graph.input if value.name == "input_ids"),
            *window.graph.input,
            *cache,
            helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]),
        ],
        [*decoder.graph.output, *(_keys(used[name], n_heads, width) for name in of_window)],
        [*decoder.graph.initializer, *window.graph.initializer],
    )
    merged = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=decoder.ir_version)
    onnx.checker.check_model(merged)
    return merged


def _keys(name: str, n_heads: int, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n_heads, None, width])
