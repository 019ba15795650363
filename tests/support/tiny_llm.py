"""A language model small enough for unit tests, as a transformers folder and as a GGUF file, and a run with it."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_run import merged
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.shards import read_shard, train_paths
from askd_ray.runs import Run
from askd_ray.targets.llm_labels import label_with_llm, load_teacher_llm
from askd_ray.targets.soft_labels import label_key
from askd_ray.text.chat import EXAMPLE, INSTRUCTION

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE like SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    texts = [EXAMPLE, INSTRUCTION, "one two three", "press four", "thank you", "user\nassistant\n"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"vocab_size": 400, "special_tokens": CONTROLS, "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts * 3, trainers.BpeTrainer(**settings, show_progress=False))
    return tokenizer


def tiny_llama(tied: bool = True) -> LlamaForCausalLM:
    """Two layers of width 64, random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    n_vocab = tiny_tokenizer().get_vocab_size()
    config = LlamaConfig(vocab_size=n_vocab, num_key_value_heads=2, tie_word_embeddings=tied, **shape)
    return LlamaForCausalLM(config).eval()


def write_tiny_llm(folder: Path) -> None:
    """Write a transformers folder."""
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))


def of_llm(recipe: Recipe, folder: Path, **sections: Any) -> Recipe:
    """The recipe of an LLM student, with changes in other sections."""
    llm = {"reader": "llm", "llm": {"model": str(folder), "lora_rank": 4}}
    changes = {"data": {"derive": None}, "student": {**llm, "compressor": {"kind": "pooling", "rate": 12.5}}}
    return Recipe.model_validate(merged(merged(recipe.model_dump(mode="json"), changes), sections))


def write_llm_run(runs_root: Path, labelled: Recipe, folder: Path) -> Recipe:
    """Write the shards of a labelled run with the labels of an LLM; return their recipe."""
    recipe = of_llm(labelled, folder).model_copy(update={"runs_root": str(runs_root)})
    run = Run(recipe)
    shutil.copytree(str(Run(labelled).shards), str(run.shards))
    llm = load_teacher_llm(recipe)
    for shard in train_paths(run.shards):
        write_labels(run.labels / shard.name, label_with_llm(llm, recipe, read_shard(shard)), label_key(recipe))
    return recipe


def write_gguf(path: Path, facts: dict[str, Any], arrays: dict[str, tuple[int, NDArray[np.float32]]]) -> None:
    """Write a GGUF file of version 3; ``arrays``: the type and the values of each."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(facts))
    head += b"".join(_text(name) + _value(value) for name, value in facts.items())
    body = b""
    for name, (kind, values) in arrays.items():
        head += _text(name) + struct.pack(f"<I{values.ndim}QIQ", values.ndim, *values.shape[::-1], kind, len(body))
        body += _encoded(kind, values)
        body += b"\0" * (-len(body) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def gguf_of(model: LlamaForCausalLM, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the facts and arrays of a model's GGUF file, named and permuted as llama.cpp does it."""
    config = model.config
    texts = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    facts: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.context_length": config.max_position_embeddings,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if text in CONTROLS else 1 for text in texts],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges_of(tokenizer)],
    }
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                values = values.reshape(n_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        arrays[name] = np.ascontiguousarray(values)
    return facts, arrays


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind, items = (8, b"".join(map(_text, value))) if isinstance(value[0], str) else (5, _int32s(value))
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def _int32s(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _encoded(kind: int, values: NDArray[np.float32]) -> bytes:
    """Quantise values in blocks of 32 as ggml does."""
    if kind in (F32, F16):
        return values.astype(np.float32 if kind == F32 else np.float16).tobytes()
    blocks = values.reshape(-1, 32)
    if kind == Q8_0:
        scale = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
        q = np.round(blocks / np.maximum(scale, 1e-8).astype(np.float32)[:, None]).clip(-127, 127).astype(np.int8)
        return b"".join(s.tobytes() + row.tobytes() for s, row in zip(scale, q, strict=True))
    least = blocks.min(axis=1).astype(np.float16)
    scale = ((blocks.max(axis=1) - least) / 15).astype(np.float16)
    levels = (blocks - least[:, None]) / np.maximum(scale, 1e-8).astype(np.float32)[:, None]
    q = np.round(levels).clip(0, 15).astype(np.uint8)
    halves = q[:, :16] | q[:, 16:] << 4
    parts = zip(scale, least, halves, strict=True)
    return b"".join(s.tobytes() + m.tobytes() + row.tobytes() for s, m, row in parts)
