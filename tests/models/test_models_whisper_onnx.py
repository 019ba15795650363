"""The ONNX folder of model hubs: torch's logits, our engine's texts, and other libraries that load it."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from extending import PAGE, example
from random_student import write_random_student

from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.clip_batches import batch_log_mel
from askd_ray.models.engine import Engine
from askd_ray.models.load import convert_to_ctranslate2, load_whisper
from askd_ray.models.onnx_export import Quantization
from askd_ray.models.whisper_onnx import ONNX_FILES, cache_names, write_whisper_onnx
from askd_ray.models.whisper_onnx_engine import OnnxWhisper
from askd_ray.models.windows import decode, encode
from askd_ray.text.tokens import Tokens

NOISE = np.random.default_rng(3).normal(0, 0.1, SAMPLE_RATE_HZ // 2).astype(np.float32)
PADDED = DecodingWindow(30.0)  # 30 s, of which the waveform is padded, as other libraries do
FORMATS_PAGE = PAGE.with_name("formats.md")


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    write_random_student(folder, tiny_model, decoder_layers=2)
    return folder


@pytest.fixture(scope="module")
def folder(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper_onnx") / "onnx"
    write_whisper_onnx(student, folder)
    return folder


def open_pair(folder: Path, quantization: Quantization) -> tuple[onnxruntime.InferenceSession, ...]:
    encoder, decoder = (onnxruntime.InferenceSession(folder / name) for name in ONNX_FILES[quantization])
    return encoder, decoder


@pytest.mark.parametrize(("quantization", "tolerance"), [("float32", 1e-3), ("int8", 0.05)])
def test_logits_are_those_of_torch(folder: Path, student: Path, quantization: Quantization, tolerance: float):
    """Of a batch of two: a prompt in one pass, then two tokens in passes of their own, from the cache."""
    model, _ = load_whisper(str(student))
    log_mel = torch.randn(2, 80, 120, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[50257, 50362, 17, 400, 3], [50257, 50362, 90, 8, 77]])
    with torch.no_grad():
        encoded = encode(model.model.encoder, log_mel)
        expected = (decode(model, ids, encoded)[-1] @ model.proj_out.weight.T).numpy()
    encoder, decoder = open_pair(folder, quantization)
    (states,) = encoder.run(["last_hidden_state"], {"input_features": log_mel.numpy()})
    assert states.shape == (2, 60, 32)
    past, present = cache_names(2, "past_key_values"), cache_names(2, "present")
    cache = [np.zeros((0, 2, 0, 16), np.float32)] * len(past)  # ignored: onnx-asr sends such shapes
    found = []
    for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
        inputs = {"input_ids": part.numpy(), "encoder_hidden_states": states}
        inputs |= {"use_cache_branch": np.array([bool(found)]), **dict(zip(past, cache, strict=True))}
        logits, *cache = decoder.run(["logits", *present], inputs)
        found.append(logits)
    difference = np.abs(np.concatenate(found, axis=1) - expected)
    assert difference.max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("window", [DecodingWindow(0.3), None])
def test_texts_are_those_of_our_engine(folder: Path, student: Path, tmp_path: Path, window: DecodingWindow | None):
    convert_to_ctranslate2(student, tmp_path / "ctranslate2", "float32")
    engine = Engine(tmp_path / "ctranslate2", compute_type="float32", threads=1, window=window)
    in_onnx = OnnxWhisper(folder, "float32", threads=1, window=window)
    for waveform in (NOISE, NOISE[: SAMPLE_RATE_HZ // 4]):
        text = engine.transcribe([waveform])[0].text
        assert len(text) > 50 and in_onnx.transcribe(waveform) == text


def test_largest_matrix_is_there_once(folder: Path):
    """The embeddings are columns of the projection."""
    for quantization, n_bytes in (("float32", 4), ("int8", 1)):
        size = (folder / ONNX_FILES[quantization][1]).stat().st_size
        assert 1.0 < size / (n_bytes * 51864 * 32) < 1.7


@pytest.mark.parametrize("missing", ["onnx/encoder_model.onnx", "generation_config.json", "tokenizer.json"])
def test_incomplete_folder_is_refused(folder: Path, tmp_path: Path, missing: str):
    shutil.copytree(folder, tmp_path / "onnx")
    (tmp_path / "onnx" / missing).unlink()
    with pytest.raises(AskdError, match=f"{missing} does not exist"):
        OnnxWhisper(tmp_path / "onnx", "float32")


def test_damaged_graph_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "onnx")
    (tmp_path / "onnx" / "onnx" / "encoder_model.onnx").write_bytes(b"no graph")
    with pytest.raises(AskdError, match="cannot be loaded by ONNX Runtime"):
        OnnxWhisper(tmp_path / "onnx", "float32")


@pytest.mark.full
@pytest.mark.slow
def test_onnx_asr_of_the_page(tiny_model: Path, tmp_path: Path):
    """Its prompt is that of multilingual models, and it suppresses no tokens."""
    pytest.importorskip("onnx_asr", reason="onnx-asr is not installed: pip install onnx-asr")
    from askd_ray.fetch.weights import fetch_weights

    tokens = Tokens(fetch_weights("base"))
    write_random_student(tmp_path / "student", tiny_model, tokens, vocab_size=51865, eos_token_id=50257)
    generation = read_json(tmp_path / "student" / "generation_config.json")
    write_json(
        tmp_path / "student" / "generation_config.json",
        {**generation, "suppress_tokens": [], "begin_suppress_tokens": []},
    )
    write_whisper_onnx(tmp_path / "student", tmp_path / "onnx")
    text = example("onnx_asr_text", FORMATS_PAGE)(tmp_path / "onnx", NOISE)
    expected = OnnxWhisper(tmp_path / "onnx", "int8", threads=1, window=PADDED).transcribe(NOISE)
    assert len(text) > 50 and text[:50] == expected[:50]


@pytest.mark.full
@pytest.mark.slow
def test_openvino_of_the_page(folder: Path):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    tokens, window = Tokens(folder), DecodingWindow(0.3).samples(len(NOISE), 80)
    log_mel = batch_log_mel([NOISE], window, DecodingWindow(0.3), 80).numpy()
    ids = example("openvino_ids", FORMATS_PAGE)(folder, log_mel, tokens.prompt(), tokens.end, 20)
    encoder, decoder = open_pair(folder, "float32")
    (states,) = encoder.run(["last_hidden_state"], {"input_features": log_mel})
    cache = {name: np.zeros((1, 2, 0, 16), np.float32) for name in cache_names(2, "past_key_values")}
    inputs = {"input_ids": np.array([[*tokens.prompt(), *ids]]), "encoder_hidden_states": states}
    (logits,) = decoder.run(["logits"], {**inputs, **cache, "use_cache_branch": np.array([False])})
    expected = logits[0, len(tokens.prompt()) - 1 : -1].argmax(-1).tolist()
    assert len(set(ids)) > 5 and ids[:8] == expected[:8]  # later, two tokens of random weights may be close
