"""Read the GGUF file of a small Llama: its config, its weights in float32, and its byte-level BPE tokenizer.

Small language models are published as GGUF files (the format: ggml-org/ggml, ``docs/gguf.md``). This module reads what
SmolLM2's files have: the types F32, F16, Q8_0 and Q4_1.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from askd_ray.errors import AskdError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCKS: dict[int, list[tuple[str, str, int]]] = {  # the fields of a type's blocks, by its number
    0: [("x", "<f4", 1)],
    1: [("x", "<f2", 1)],
    3: [("scale", "<f2", 1), ("least", "<f2", 1), ("halves", "u1", 16)],  # Q4_1: x = scale * q + least
    8: [("scale", "<f2", 1), ("x", "i1", 32)],  # Q8_0: x = scale * q
}
_CONTROL = 3  # the type of a token that is no text

_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class GgufFile:
    """The contents of a GGUF file: ``facts`` by name, the ``names`` of its arrays, and the arrays that were read.

    They are in float32, with the shapes of PyTorch.
    """

    facts: dict[str, Any]
    names: tuple[str, ...]
    arrays: dict[str, NDArray[np.float32]]


def read_llama_config(path: Path) -> LlamaConfig:
    """Return the config of the model in a GGUF file.

    Raises :class:`AskdError` when the file is damaged, or holds another kind of model.
    """
    return _config(read_gguf(path, with_arrays=False), path)


def read_llama(path: Path) -> LlamaForCausalLM:
    """Return the model of a GGUF file, in float32 on the CPU, every weight matched.

    Raises :class:`AskdError` when the file is damaged, or holds another kind of model or type of weights.
    """
    contents = read_gguf(path)
    config = _config(contents, path)
    try:
        state = {_renamed(name): _weight(name, array, config) for name, array in contents.arrays.items()}
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.load_state_dict(state, strict=True, assign=True)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"{path} holds no Llama that can be read: {reason}") from None
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # has computed buffers, which meta leaves empty
    model.tie_weights()
    return model.eval()


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Raises :class:`AskdError` when the file is damaged, or has a tokenizer other than SmolLM's.
    """
    facts = read_gguf(path, with_arrays=False).facts
    kind = f"{facts.get('tokenizer.ggml.model')}/{facts.get('tokenizer.ggml.pre')}"
    if kind != "gpt2/smollm":
        raise AskdError(f"{path} has the tokenizer {kind}: only gpt2/smollm can be read")
    texts: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in facts["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = facts["tokenizer.ggml.token_type"]
    controls = [text for text, kind in zip(texts, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in controls])
    return tokenizer


def read_gguf(path: Path, with_arrays: bool = True) -> GgufFile:
    """Return the contents of a GGUF file; without its arrays if they are not needed.

    Raises :class:`AskdError` when it is no such file, is damaged, or has weights of another type.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).contents(with_arrays)
    except FileNotFoundError:
        raise AskdError(f"{path} does not exist") from None
    except (struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
        if isinstance(error, AskdError):
            raise
        raise AskdError(f"{path} is no GGUF file, or is damaged: fetch it again") from None


class _Reader:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap, path: Path):
        self._data, self._path, self._at = data, path, 0

    def contents(self, with_arrays: bool) -> GgufFile:
        magic, version, n_arrays, n_facts = self._take("4s"), self._take("I"), self._take("Q"), self._take("Q")
        if magic != _MAGIC or version not in _VERSIONS:
            raise AskdError(f"{self._path} is no GGUF file of version 2 or 3")
        facts = {self._string(): self._value(self._take("I")) for _ in range(n_facts)}
        places = [self._place() for _ in range(n_arrays)]
        start = self._at + -self._at % int(facts.get("general.alignment", 32))
        read = places if with_arrays else []
        arrays = {name: self._array(shape, kind, start + at) for name, shape, kind, at in read}
        return GgufFile(facts, tuple(name for name, *_ in places), arrays)

    def _take(self, layout: str) -> Any:
        (value,) = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return value

    def _string(self) -> str:
        return self._take(f"{self._take('Q')}s").decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, n = self._take("I"), self._take("Q")
            return [self._value(kind) for _ in range(n)]
        return self._take(_SCALARS[kind])

    def _place(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return an array's name, shape, type and place."""
        name = self._string()
        shape = tuple(self._take("Q") for _ in range(self._take("I")))[::-1]  # the fastest dimension is first there
        return name, shape, self._take("I"), self._take("Q")

    def _array(self, shape: tuple[int, ...], kind: int, at: int) -> NDArray[np.float32]:
        if kind not in _BLOCKS:
            raise AskdError(f"{self._path} has weights of type {kind}: allowed are F32, F16, Q8_0 and Q4_1")
        layout = np.dtype(_BLOCKS[kind])
        per_block = 32 if "scale" in (layout.names or ()) else 1
        blocks = np.frombuffer(self._data, layout, int(np.prod(shape)) // per_block, at)
        return _values(blocks).reshape(shape)


def _values(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Return the values of blocks, in a copy."""
    names = blocks.dtype.names or ()
    if "halves" in names:
        halves = blocks["halves"]
        values = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
        return values * _column(blocks["scale"]) + _column(blocks["least"])
    values = blocks["x"].astype(np.float32)
    return values * _column(blocks["scale"]) if "scale" in names else values


def _column(of_blocks: NDArray[Any]) -> NDArray[np.float32]:
    return of_blocks.astype(np.float32).reshape(-1, 1)


def _config(contents: GgufFile, path: Path) -> LlamaConfig:
    facts = contents.facts
    llama = {name.removeprefix("llama."): value for name, value in facts.items() if name.startswith("llama.")}
    try:
        return LlamaConfig(
            vocab_size=len(facts["tokenizer.ggml.tokens"]),
            hidden_size=llama["embedding_length"],
            intermediate_size=llama["feed_forward_length"],
            num_hidden_layers=llama["block_count"],
            num_attention_heads=llama["attention.head_count"],
            num_key_value_heads=llama["attention.head_count_kv"],
            max_position_embeddings=llama["context_length"],
            rms_norm_eps=llama["attention.layer_norm_rms_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
            tie_word_embeddings="output.weight" not in contents.names,
        )
    except KeyError as error:
        kind = facts.get("general.architecture")
        raise AskdError(f"{path} holds no Llama that can be read: it is a {kind}, without {error}") from None


def _renamed(name: str) -> str:
    """Return the name in transformers of an array."""
    if not name.startswith("blk."):
        part, _, kind = name.partition(".")
        return f"{_OTHERS[part]}.{kind}"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_OF_LAYER[part]}.{kind}"


def _weight(name: str, array: NDArray[np.float32], config: LlamaConfig) -> torch.Tensor:
    """Return an array as transformers has it: rotations of queries and keys are in another order in GGUF files."""
    part = name.split(".")[-2]
    if part in ("attn_q", "attn_k"):
        n_heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        assert n_heads is not None
        array = array.reshape(n_heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    return torch.from_numpy(np.ascontiguousarray(array))
