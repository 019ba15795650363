"""GGML files: their layout, their 8 bits, and the texts of whisper.cpp against our engine's."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_student import write_random_student
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models import ggml
from askd_ray.models.engine import Engine
from askd_ray.models.ggml import GGML_FILES, ggml_tensors, write_ggml
from askd_ray.models.load import convert_to_ctranslate2, load_whisper, save_whisper
from askd_ray.models.whisper_cpp import WhisperCpp
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import Tokens

pytest.importorskip("pywhispercpp", reason="the extra `exports` is not installed")
NOISE = np.random.default_rng(3).normal(0, 0.1, SAMPLE_RATE_HZ // 2).astype(np.float32)


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    write_random_student(folder, tiny_model)
    return folder


@pytest.fixture(scope="module")
def folder(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ggml") / "ggml"
    write_ggml(str(student), folder)
    return folder


def test_every_tensor_is_there(folder: Path, student: Path):
    model, _ = load_whisper(str(student))
    for name in GGML_FILES.values():
        shapes = ggml_tensors(folder / name)
        assert len(shapes) == 11 + 2 * 15 + 1 * 24
        n_stored = sum(p.numel() for key, p in model.state_dict().items() if key != "proj_out.weight")
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == n_stored
        assert shapes["encoder.conv1.bias"] == (32, 1) and shapes["encoder.positional_embedding"] == (1500, 32)
        assert shapes["decoder.token_embedding.weight"] == (51864, 32)
        assert shapes["decoder.blocks.0.cross_attn.key.weight"] == (32, 32)
        assert {"encoder.ln_post.bias", "decoder.ln.bias", "encoder.blocks.0.mlp_ln.weight"} <= shapes.keys()


def test_vocabulary_has_the_text_tokens(folder: Path, student: Path):
    tokens = Tokens(student)
    data = (folder / GGML_FILES["f16"]).read_bytes()
    place = 12 * 4 + 2 * 4 + 80 * 201 * 4
    (n_tokens,) = struct.unpack_from("<i", data, place)
    assert n_tokens == tokens.end == 50256
    place += 4
    for token_id in range(n_tokens):
        (length,) = struct.unpack_from("<i", data, place)
        assert data[place + 4 : place + 4 + length] == tokens.bytes_of(token_id)
        place += 4 + length


@given(arrays(np.float32, (3, 64), elements=st.floats(-8, 8, width=32)))
def test_eight_bits_are_close(matrix: np.ndarray):
    packed = np.frombuffer(ggml._q8_0(matrix), [("scale", "<f2"), ("levels", "i1", 32)])
    back = (packed["scale"].astype(np.float32)[:, None] * packed["levels"]).reshape(matrix.shape)
    largest = np.abs(matrix.reshape(-1, 32)).max(axis=1).repeat(32).reshape(matrix.shape)
    # Half a level, and the rounding of the scale to float16, which has 11 bits or steps of 2 ** -24.
    assert (np.abs(back - matrix) <= largest * (0.5 / 127 + 2**-11) + 127 * 2.0**-25).all()


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_cut_file_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory, share: float):
    data = (folder / GGML_FILES["q8_0"]).read_bytes()
    cut = tmp_path_factory.getbasetemp() / "cut.bin"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(AskdError, match="is no whole GGML file"):
        WhisperCpp(cut)


def test_file_that_ends_after_a_tensor_is_refused(folder: Path, tmp_path: Path):
    data = (folder / GGML_FILES["f16"]).read_bytes()
    last = 12 + 4 + len("decoder.ln.bias") + 32 * 4
    assert data[-last:].find(b"decoder.ln.bias") == 16
    (tmp_path / "cut.bin").write_bytes(data[:-last])
    with pytest.raises(AskdError, match="it has 64 tensors, not 65"):
        ggml_tensors(tmp_path / "cut.bin")


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(AskdError, match="No such file"):
        WhisperCpp(tmp_path / "ggml-model.bin")


def test_model_that_whisper_cpp_cannot_run_is_refused(student: Path, tiny_model: Path, tmp_path: Path):
    with pytest.raises(AskdError, match=r"feed-forward blocks of 4 times the width .* has 64 and 32"):
        write_ggml(str(tiny_model), tmp_path / "ggml")
    model, tokens = load_whisper(str(student))
    model.resize_token_embeddings(51000)  # whisper.cpp would take other tokens for the special ones
    save_whisper(model, tokens, tmp_path / "pruned")
    with pytest.raises(AskdError, match=r"takes a vocabulary of 51864, 51865, 51866 tokens, .* this one has 51000"):
        write_ggml(str(tmp_path / "pruned"), tmp_path / "ggml")
    assert not (tmp_path / "ggml").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, DecodingWindow], tuple[Engine, WhisperCpp]]:
    """Return our engine and whisper.cpp with the same model, its weights in float16."""

    def open_pair(student: Path, window: DecodingWindow) -> tuple[Engine, WhisperCpp]:
        folder = tmp_path_factory.mktemp("pair")
        convert_to_ctranslate2(student, folder / "ctranslate2", "float16")
        write_ggml(str(student), folder / "ggml")
        engine = Engine(folder / "ctranslate2", compute_type="float32", threads=1, window=window)
        return engine, WhisperCpp(folder / "ggml" / GGML_FILES["f16"], threads=1, window=window)

    return open_pair


def test_student_of_few_layers(student: Path, pair: Callable[..., tuple[Engine, WhisperCpp]]):
    engine, whisper_cpp = pair(student, DecodingWindow(0.3))
    text = engine.transcribe([NOISE])[0].text
    assert len(text) > 100 and whisper_cpp.transcribe(NOISE)[:40] == text[:40]  # in float16, with other roundings


@pytest.mark.slow
@pytest.mark.parametrize("window", [DecodingWindow(0.5, 3.0), DecodingWindow(28.0)])
def test_real_speech(
    tiny_en: Model, tmp_path: Path, speech: Path, pair: Callable[..., tuple[Engine, WhisperCpp]], window: DecodingWindow
):
    save_whisper(*tiny_en, tmp_path / "student")
    engine, whisper_cpp = pair(tmp_path / "student", window)
    waveforms = [waveform_of(clip) for clip in utterances(speech, 12)]
    normalize = normalizer("en")
    expected = [normalize(transcript.text) for transcript in engine.transcribe(waveforms)]
    texts = [normalize(whisper_cpp.transcribe(waveform)) for waveform in waveforms]
    assert count_word_errors(expected, texts).rate <= 0.02


@pytest.mark.full
@pytest.mark.slow
def test_multilingual_model(speech: Path, tmp_path: Path, pair: Callable[..., tuple[Engine, WhisperCpp]]):
    from askd_ray.fetch.weights import fetch_weights

    save_whisper(*load_whisper(str(fetch_weights("base"))), tmp_path / "student")
    engine, whisper_cpp = pair(tmp_path / "student", DecodingWindow(28.0))
    normalize = normalizer("en")
    for waveform in [waveform_of(clip) for clip in utterances(speech, 2)]:
        text = normalize(whisper_cpp.transcribe(waveform, "en"))
        assert text == normalize(engine.transcribe([waveform], "en")[0].text) != ""
