"""Read CTranslate2 Whisper folders as transformers models.

Many Whisper weights are published as CTranslate2 folders. Their ``model.bin`` is a flat list of named arrays
(OpenNMT/CTranslate2 ``python/ctranslate2/specs/model_spec.py``); fp16 and fp32 weights convert without loss.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.empty import empty_whisper
from askd_ray.text.tokens import Tokens

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_VERSION = 6  # of the binary format
_FUSED = {  # CTranslate2 stacks an attention's projections; transformers has separate ones (and no bias for k)
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention/linear_1": ("self_attn", ("out_proj",)),
    "attention/linear_0": ("encoder_attn", ("q_proj",)),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
    "attention/linear_2": ("encoder_attn", ("out_proj",)),
    "ffn/linear_0": ("", ("fc1",)),
    "ffn/linear_1": ("", ("fc2",)),
}
_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}


def read_ctranslate2(folder: Path) -> WhisperForConditionalGeneration:
    """Return the float32 transformers model of a CTranslate2 Whisper folder, every key matched.

    Raises :class:`AskdError` when the folder holds no such model, or one whose weights are quantised.
    """
    arrays = _read_arrays(folder / "model.bin")
    state = _to_transformers(arrays, folder)
    model = empty_whisper(_config(arrays, Tokens(folder)))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    model.generation_config = _generation_config(model.config, Tokens(folder), read_json(folder / "config.json"))
    return model.eval()


def read_config(folder: Path) -> WhisperConfig:
    """Return the transformers config of a CTranslate2 Whisper folder, derived from the shapes of its weights.

    Raises :class:`AskdError` when the folder holds no such model.
    """
    return _config(_read_arrays(folder / "model.bin"), Tokens(folder))


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as file:
            version, name, _ = _unpack(file, "<I"), _string(file), _unpack(file, "<I")
            if version != _VERSION or name != "WhisperSpec":
                raise AskdError(f"{path}: {name} version {version}; a Whisper model of version {_VERSION} is expected")
            return dict(_array(file, path) for _ in range(_unpack(file, "<I")))
    except FileNotFoundError:
        raise AskdError(f"{path} does not exist: a CTranslate2 folder needs it") from None
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, AskdError):
            raise
        raise AskdError(f"{path} is damaged: fetch or convert it again") from None


def _unpack(file: BinaryIO, layout: str) -> int:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "<H"))[:-1].decode()  # the last byte is the C string's 0


def _array(file: BinaryIO, path: Path) -> tuple[str, np.ndarray[Any, Any]]:
    name = _string(file)
    shape = [_unpack(file, "<I") for _ in range(_unpack(file, "<B"))]
    dtype = _DTYPES.get(_unpack(file, "<B"))
    data = file.read(_unpack(file, "<I"))
    if dtype is None:
        raise AskdError(f"{path}: array {name} has an unknown element type; float16 or float32 is expected")
    return name, np.frombuffer(data, dtype).reshape(shape)


def _to_transformers(arrays: dict[str, np.ndarray[Any, Any]], folder: Path) -> dict[str, torch.Tensor]:
    if any(name.endswith("weight_scale") for name in arrays):
        raise AskdError(f"{folder} holds quantised weights: training needs a float16 or float32 model")
    weights = {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items() if a.dtype.kind == "f"}
    state: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        part, _, rest = name.partition("/")
        target = f"model.{part}."
        if rest.startswith("layer_") and not rest.startswith("layer_norm"):
            layer, _, module = rest.partition("/")
            state |= _layer(f"{target}layers.{layer.removeprefix('layer_')}.", module, value)
        elif rest in {"conv1/weight", "conv1/bias", "conv2/weight", "conv2/bias"}:
            state[target + rest.replace("/", ".")] = value
        elif rest == "embeddings/weight":
            state[target + "embed_tokens.weight"] = value
        elif rest == "position_encodings/encodings":
            state[target + "embed_positions.weight"] = value
        elif rest.startswith("layer_norm/"):
            state[target + "layer_norm." + _norm(rest)] = value
    return state


def _norm(name: str) -> str:
    return "weight" if name.endswith("gamma") else "bias"


def _layer(prefix: str, module: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    name, _, kind = module.rpartition("/")
    if name in _NORMS:
        return {f"{prefix}{_NORMS[name]}.{_norm(kind)}": value}
    group, projections = _FUSED[name]
    path = prefix + (group + "." if group else "")
    pieces = value.chunk(len(projections))
    return {
        f"{path}{projection}.{kind}": piece.contiguous()
        for projection, piece in zip(projections, pieces, strict=True)
        if not (projection == "k_proj" and kind == "bias")  # CTranslate2 adds zeros here to stack the biases
    }


def _config(arrays: dict[str, np.ndarray[Any, Any]], tokens: Tokens) -> WhisperConfig:
    def n_layers(part: str) -> int:
        return len({n.split("/")[1] for n in arrays if n.startswith(f"{part}/layer_") and "layer_norm" not in n[:19]})

    vocab_size, d_model = arrays["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        d_model=d_model,
        encoder_layers=n_layers("encoder"),
        decoder_layers=n_layers("decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        decoder_start_token_id=tokens.id_of("<|startoftranscript|>"),
    )


def _generation_config(config: WhisperConfig, tokens: Tokens, settings: dict[str, Any]) -> GenerationConfig:
    extra: dict[str, Any] = {}
    if tokens.multilingual:
        languages = {t: i for t, i in tokens.tokenizer.get_vocab().items() if i in set(settings["lang_ids"])}
        extra = {
            "lang_to_id": languages,
            "task_to_id": {task: tokens.id_of(f"<|{task}|>") for task in ("transcribe", "translate")},
        }
    return GenerationConfig(
        max_length=config.max_target_positions,
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        decoder_start_token_id=config.decoder_start_token_id,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=tokens.id_of("<|notimestamps|>"),
        prev_sot_token_id=tokens.id_of("<|startofprev|>"),
        is_multilingual=tokens.multilingual,
        alignment_heads=settings["alignment_heads"],
        **extra,
    )
