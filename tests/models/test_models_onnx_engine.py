"""Short clips in ONNX Runtime: CTranslate2's texts, and what only CTranslate2 does."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import utterances

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.engine import Engine
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.onnx_engine import OnnxEngine
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

WINDOW = DecodingWindow(silence_s=0.3, min_s=8.0)  # stock weights repeat themselves in most shorter windows


class Full:
    """CTranslate2's engine, and the number of clips that it has decoded."""

    def __init__(self, engine: Engine):
        self.engine, self.n_decoded = engine, 0

    def transcribe(
        self, waveforms: list[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        self.n_decoded += len(waveforms)
        return self.engine.transcribe(waveforms, language, decoding)

    def __getattr__(self, name: str):
        return getattr(self.engine, name)


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Waveform]:
    return [waveform_of(u) for u in utterances(speech, 12)]


@pytest.fixture(scope="module")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.en in a folder for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("tiny_en")
    save_whisper(*load_whisper(str(weights)), folder / "transformers")
    write_fused_onnx(str(folder / "transformers"), folder / "onnx", "int8")
    return folder / "onnx"


@pytest.fixture
def full(weights: Path) -> Full:
    return Full(Engine(weights, threads=1, window=WINDOW))


@pytest.fixture
def engine(folder: Path, full: Full) -> OnnxEngine:
    return OnnxEngine(folder, full, threads=1)  # pyright: ignore[reportArgumentType]


def test_no_clips(engine: OnnxEngine):
    assert engine.transcribe([]) == []


def test_texts_are_those_of_ctranslate2(engine: OnnxEngine, full: Full, clips: list[Waveform], speech: Path):
    found, expected = engine.transcribe(clips), full.engine.transcribe(clips)
    assert full.n_decoded == 0
    normalize, references = normalizer("en"), [u.text for u in utterances(speech, 12)]
    rates = [
        count_word_errors(list(map(normalize, references)), [normalize(t.text) for t in transcripts]).rate
        for transcripts in (found, expected)
    ]
    assert rates[0] < rates[1] + 0.05 < 0.3
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.token_ids == b.token_ids]
    assert len(pairs) >= 8
    assert [a.avg_logprob for a, _ in pairs] == pytest.approx([b.avg_logprob for _, b in pairs], abs=0.1)
    assert all(a.ended and a.language == "en" for a, _ in pairs)


def test_a_text_depends_on_nothing_else(engine: OnnxEngine, clips: list[Waveform]):
    """Not on the other clips, and not on calls of other threads."""
    together = engine.transcribe(clips)
    with ThreadPoolExecutor(4) as threads:
        alone = list(threads.map(lambda clip: engine.transcribe([clip])[0], clips))
    assert together == alone


@pytest.mark.parametrize(
    "decoding",
    [Decoding(beam_size=2), Decoding(timestamps=True), Decoding(no_speech=True), Decoding(no_repeat_ngram_size=3)],
)
def test_what_is_not_greedy_is_ctranslate2s(engine: OnnxEngine, full: Full, clips: list[Waveform], decoding: Decoding):
    assert engine.transcribe(clips[:2], "en", decoding) == full.engine.transcribe(clips[:2], "en", decoding)
    assert full.n_decoded == 2


def test_confidence_and_times_are_those_of_the_text(engine: OnnxEngine, full: Full, clips: list[Waveform]):
    plain, found = engine.transcribe(clips[:4]), engine.transcribe(clips[:4], "en", Decoding(confidence=True))
    assert full.n_decoded == 0
    assert plain == [replace(t, token_texts=(), token_probs=(), token_times=()) for t in found]
    for transcript, clip in zip(found, clips, strict=False):
        assert "".join(transcript.token_texts).strip() == transcript.text
        assert len(transcript.token_probs) == len(transcript.token_ids)
        assert len(transcript.token_times) == len(transcript.token_ids) + 1
        assert 0.0 <= transcript.token_times[0] <= transcript.token_times[-1] <= WINDOW.samples(len(clip), 80) / 16_000


def test_a_prompt_is_read(engine: OnnxEngine, full: Full, clips: list[Waveform]):
    prompt = Decoding(prompt="Voicemail, extension, conference.")
    found, expected = engine.transcribe(clips[:4], "en", prompt), full.engine.transcribe(clips[:4], "en", prompt)
    assert sum(a.token_ids == b.token_ids for a, b in zip(found, expected, strict=True)) >= 3
    with pytest.raises(AskdError, match="at most 223 are allowed"):
        engine.transcribe(clips[:1], "en", Decoding(prompt="word " * 300))


def test_silence_and_no_samples(engine: OnnxEngine):
    silence, nothing = engine.transcribe([np.zeros(SAMPLE_RATE_HZ, np.float32), np.zeros(0, np.float32)])
    assert np.isfinite([silence.avg_logprob, nothing.avg_logprob]).all()


def test_a_text_without_an_end_says_so(folder: Path, weights: Path, clips: list[Waveform]):
    """In short windows, stock weights repeat themselves up to the limit."""
    short = DecodingWindow(silence_s=0.0)
    engine = OnnxEngine(folder, Engine(weights, threads=1, window=short), threads=1)
    found = engine.transcribe(clips)
    assert {t.ended for t in found} == {True, False}
    expected = Engine(weights, threads=1, window=short).transcribe(clips)
    limits = {
        len(a.token_ids): len(b.token_ids) for a, b in zip(found, expected, strict=True) if not (a.ended or b.ended)
    }
    assert limits and all(ours == theirs for ours, theirs in limits.items())


def test_the_window_is_that_of_both_engines(engine: OnnxEngine, full: Full, clips: list[Waveform]):
    engine.window = None
    assert engine.window_samples(clips[0]) == 30 * SAMPLE_RATE_HZ
    assert engine.transcribe(clips[:1])[0].text
    assert engine.transcribe(clips[:1], "en", Decoding(beam_size=2))[0].text
    assert full.window is None


def test_bad_input_and_bad_folders(engine: OnnxEngine, folder: Path, full: Full, tmp_path: Path):
    with pytest.raises(AskdError, match="only 'en' is allowed"):
        engine.transcribe([np.zeros(16_000, np.float32)], "de")
    with pytest.raises(AskdError, match="at most 30 s is allowed"):
        engine.transcribe([np.zeros(31 * 16_000, np.float32)], "en")
    with pytest.raises(AskdError, match="does not exist"):
        OnnxEngine(tmp_path, full.engine)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(b"damaged" if file.name == DECODER_FILE else file.read_bytes())
    with pytest.raises(AskdError, match="cannot be loaded by ONNX Runtime"):
        OnnxEngine(tmp_path, full.engine)
    shutil.copyfile(folder / ENCODER_FILE, tmp_path / DECODER_FILE)  # a model with other inputs
    with pytest.raises(AskdError, match="another version of askd-ray: write it again"):
        OnnxEngine(tmp_path, full.engine)


def test_greedy_is_the_default():
    assert Decoding() == GREEDY
