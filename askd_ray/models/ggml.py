"""Writes a Whisper as files that whisper.cpp loads: ``ggml-model.bin`` in float16, ``ggml-model-q8_0.bin`` in 8 bits.

A file has, in little endian: a magic number; eleven int32 with the sizes (:func:`_sizes`); the mel filters; the bytes
of each text token; and the tensors, each with its number of dimensions, the length of its name, its type, its
dimensions (the fastest first), its name and its data. whisper.cpp derives the ids of all special tokens, and whether
the model is multilingual, from the size of the vocabulary.

Source: whisper.cpp, models/convert-h5-to-ggml.py and whisper_model_load in src/whisper.cpp.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.audio.logmel import mel_filters
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path
from askd_ray.models.load import load_whisper
from askd_ray.text.tokens import Tokens

GgmlType = Literal["f16", "q8_0"]
GGML_FILES: dict[GgmlType, str] = {"f16": "ggml-model.bin", "q8_0": "ggml-model-q8_0.bin"}
"""The file of each type in a folder of :func:`write_ggml`."""
VOCABULARY_SIZES = (51864, 51865, 51866)
"""English-only, multilingual, and multilingual with Cantonese (large-v3)."""

_MAGIC = 0x67676D6C
_FILE_TYPES: dict[GgmlType, int] = {"f16": 1, "q8_0": 2007}  # 1000 * version of the quantization + its number
_F32, _F16, _Q8_0 = 0, 1, 8  # types of tensors
_BLOCK = 32  # values of q8_0 that share a scale
_N_BYTES = {_F32: (4, 1), _F16: (2, 1), _Q8_0: (2 + _BLOCK, _BLOCK)}  # bytes of so many values

_NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn\.q_proj\.", ".cross_attn.query."),
    (r"\.encoder_attn\.k_proj\.", ".cross_attn.key."),
    (r"\.encoder_attn\.v_proj\.", ".cross_attn.value."),
    (r"\.encoder_attn\.out_proj\.", ".cross_attn.out."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
"""How a name of transformers becomes that of openai/whisper, which whisper.cpp has taken over; applied in turn."""


def write_ggml(reference: str, target: Path) -> None:
    """Write a folder with the files :data:`GGML_FILES` of a Whisper, atomically.

    Raises :class:`AskdError` when there is no such model, its files are damaged, or whisper.cpp cannot run it.
    """
    model, tokens = load_whisper(reference)
    config = model.config
    if config.vocab_size not in VOCABULARY_SIZES:
        raise AskdError(
            f"{reference}: whisper.cpp takes a vocabulary of {', '.join(map(str, VOCABULARY_SIZES))} tokens, because "
            f"it derives the special ones from the size; this one has {config.vocab_size}: leave the format ggml out"
        )
    widths = {config.encoder_ffn_dim, config.decoder_ffn_dim}
    if widths != {4 * config.d_model} or config.d_model % _BLOCK:
        raise AskdError(
            f"{reference}: whisper.cpp takes feed-forward blocks of 4 times the width of the states, a multiple of "
            f"{_BLOCK}; this one has {', '.join(map(str, sorted(widths)))} and {config.d_model}"
        )
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for kind, name in GGML_FILES.items():
            with (temporary / name).open("wb") as file:
                file.write(struct.pack("<12i", _MAGIC, *_sizes(config), _FILE_TYPES[kind]))
                filters = mel_filters(config.num_mel_bins).numpy().astype("<f4")
                file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
                _write_vocabulary(file, tokens)
                for tensor_name, tensor in _tensors(model):
                    _write_tensor(file, tensor_name, tensor, kind)


def _sizes(config: WhisperConfig) -> tuple[int, ...]:
    return (
        config.vocab_size,
        config.max_source_positions,
        config.d_model,
        config.encoder_attention_heads,
        config.encoder_layers,
        config.max_target_positions,
        config.d_model,
        config.decoder_attention_heads,
        config.decoder_layers,
        config.num_mel_bins,
    )


def _write_vocabulary(file: BinaryIO, tokens: Tokens) -> None:
    """Write the text tokens: whisper.cpp names the special ones, which come after them."""
    file.write(struct.pack("<i", tokens.end))
    for token_id in range(tokens.end):
        text = tokens.bytes_of(token_id)
        file.write(struct.pack("<i", len(text)) + text)


def _tensors(model: WhisperForConditionalGeneration) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors with their names; the projection is that of the token embeddings."""
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if re.fullmatch(r"encoder\.conv[12]\.bias", name):
            tensor = tensor[:, None]  # added to (channels, positions)
        yield name, tensor.detach().to(torch.float32).numpy()


def _write_tensor(file: BinaryIO, name: str, tensor: NDArray[np.float32], kind: GgmlType) -> None:
    """Write a tensor: matrices in the type of the file, convolutions in float16, everything else in float32."""
    matrix = tensor.ndim == 2 and name.endswith(".weight")
    if matrix and kind == "q8_0":
        tensor_type, data = _Q8_0, _q8_0(tensor)
    elif matrix or tensor.ndim == 3:
        tensor_type, data = _F16, tensor.astype("<f2").tobytes()
    else:
        tensor_type, data = _F32, tensor.astype("<f4").tobytes()
    encoded = name.encode()
    file.write(struct.pack("<3i", tensor.ndim, len(encoded), tensor_type))
    file.write(struct.pack(f"<{tensor.ndim}i", *reversed(tensor.shape)) + encoded + data)


def ggml_tensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file of :func:`write_ggml`, by name.

    pywhispercpp ends the process when whisper.cpp cannot load a file, so this checks files first.

    Raises :class:`AskdError` when the file is missing or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            magic, *sizes, _ = _integers(stream, 12)
            if magic != _MAGIC:
                raise ValueError("it begins with another magic number")
            n_mels, n_bins = _integers(stream, 2)
            stream.seek(4 * n_mels * n_bins, os.SEEK_CUR)
            for _ in range(_integers(stream, 1)[0]):
                stream.seek(_integers(stream, 1)[0], os.SEEK_CUR)
            while stream.tell() < size:
                n_dims, n_name, tensor_type = _integers(stream, 3)
                shape = tuple(reversed(_integers(stream, n_dims)))
                name = stream.read(n_name).decode()
                n_bytes, n_values = _N_BYTES[tensor_type]
                if stream.seek(math.prod(shape) // n_values * n_bytes, os.SEEK_CUR) > size:
                    raise ValueError(f"it ends in {name}")
                shapes[name] = shape
            n_expected = _n_tensors(sizes[4], sizes[8])
            if len(shapes) != n_expected:
                raise ValueError(f"it has {len(shapes)} tensors, not {n_expected}")
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise AskdError(f"{file} is no whole GGML file of a Whisper: {error}") from None
    return shapes


def _n_tensors(n_encoder_layers: int, n_decoder_layers: int) -> int:
    """Return the number of tensors: 7 of each attention, 4 of each feed-forward block, 2 of each norm, and 11 more."""
    return 11 + n_encoder_layers * (7 + 4 + 2 * 2) + n_decoder_layers * (2 * 7 + 4 + 3 * 2)


def _integers(stream: BinaryIO, n: int) -> tuple[int, ...]:
    return struct.unpack(f"<{n}i", stream.read(4 * n))


def _q8_0(matrix: NDArray[np.float32]) -> bytes:
    """Return a matrix in blocks of 32 values of a row: a float16 scale, and the values divided by it as int8."""
    blocks = matrix.reshape(-1, _BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    levels = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
    packed = np.empty(len(blocks), [("scale", "<f2"), ("levels", "i1", _BLOCK)])
    packed["scale"], packed["levels"] = scale[:, 0], np.rint(levels)
    return packed.tobytes()
