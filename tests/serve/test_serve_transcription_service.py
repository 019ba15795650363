"""The text of the service is the served text of the evaluation, for every clip."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import FakeSpeechEngine, InProcessDecoder, bundle_of, spoken, wav

from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Span, VadOptions
from askd_ray.evaluation.systems import open_system
from askd_ray.models.decode_fallback import transcribe_with_fallback
from askd_ray.models.served import transcribe_as_served, transcribe_raw_and_served
from askd_ray.models.transcript import Decoding, Transcript
from askd_ray.serve.engine import ServedModels, load
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.transcriber import Transcriber
from askd_ray.serve.transcription import Transcription
from askd_ray.serve.transcription_service import ChunkResult, TranscribeOptions, TranscriptionService


class FixedVad:
    """Finds the same spans of speech in each waveform."""

    def __init__(self, speech: Sequence[Span]):
        self.spans = list(speech)

    def speech(self, waveform: Waveform, options: VadOptions | None = None) -> list[Span]:
        return self.spans


class DiceEngine:
    """A decoding engine whose transcripts are random, but the same for the same clip and options.

    They are good, loops, improbable, or too short for their clip.
    """

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        assert language is not None
        return [self._transcript(waveform, language, decoding) for waveform in waveforms]

    def _transcript(self, waveform: Waveform, language: str, decoding: Decoding | None) -> Transcript:
        digest = hashlib.sha256(waveform.tobytes() + repr(decoding).encode()).digest()
        n_tokens = (0, 2, 12, 70)[digest[0] % 4]
        words = " ".join(f"w{byte}" for byte in digest[: n_tokens or 1]) if n_tokens else ""
        probability = (-0.2, -0.7, -1.3)[digest[1] % 3]
        no_speech_prob = (0.1, 0.9)[digest[2] % 2]
        return Transcript(
            words, tuple(range(n_tokens)), probability, no_speech_prob, ended=digest[3] % 4 > 0, language=language
        )


class DiceService(FakeSpeechEngine):
    """A speech engine around :class:`DiceEngine`, which decodes each chunk alone."""

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        (transcript,) = transcribe_with_fallback(DiceEngine(), [chunk], options.language, options.decoding)
        return ChunkResult(transcript, "v1", 1, 0.01)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Waveform, list[Span]]:
    """A waveform of up to 70 s, and its spans of speech."""
    n_samples = draw(st.integers(0, samples_of(70.0)))
    ends = draw(st.lists(st.integers(0, n_samples), max_size=12, unique=True).map(sorted))
    pairs = zip(ends[::2], ends[1::2], strict=False)
    noise = np.random.default_rng(n_samples).normal(0.0, 0.1, n_samples)
    return noise.astype(np.float32), [Span(start, end) for start, end in pairs]


def service_text(waveform: Waveform, speech: Sequence[Span], language: str) -> str:
    """Return the text of a service with :class:`DiceEngine`."""
    service = TranscriptionService(DiceService(), InProcessDecoder())
    service.vad = FixedVad(speech)

    async def transcribe() -> str:
        options = TranscribeOptions("student", language)
        chunks = [chunk async for chunk in service.transcribe(waveform, options)]
        return Transcription(tuple(s for chunk in chunks for s in chunk.segments), language, 0.0).text

    return asyncio.run(transcribe())


@settings(max_examples=60, deadline=None)
@given(recordings(), st.sampled_from(["en", "ja"]))
def test_the_served_path_makes_the_decisions_of_the_service(recording: tuple[Waveform, list[Span]], language: str):
    waveform, speech = recording
    expected = service_text(waveform, speech, language)
    (alone,) = transcribe_as_served(DiceEngine(), FixedVad(speech), [waveform], language)
    _, beside_raw = transcribe_raw_and_served(DiceEngine(), FixedVad(speech), [waveform, waveform[::-1]], language)
    assert (alone.text.strip(), beside_raw[0].text.strip()) == (expected, expected)


def difficult_clips(speech: Path) -> dict[str, Waveform]:
    """Real clips of all lengths, and clips without speech, as 16-bit samples."""
    rng, prompts = np.random.default_rng(0), [waveform for waveform, _ in spoken(speech, 16)]
    pause = np.zeros(samples_of(0.5), np.float32)
    together = np.concatenate([piece for prompt in prompts for piece in (prompt, pause)])
    clips = {
        "nothing": np.zeros(SAMPLE_RATE_HZ, np.float32),
        "floor": rng.normal(0.0, 1e-4, samples_of(5.0)),
        "noise": rng.normal(0.0, 0.1, samples_of(8.0)),
        "one word": decode((speech / "audio/activated.flac").read_bytes()),
        "a sentence": prompts[0],
        "too fast": prompts[1][::2],
        "in noise": prompts[2] + rng.normal(0.0, 0.1, len(prompts[2])),
        "18 s": together[: samples_of(18.0)],
        "25 s": together[: samples_of(25.0)],
        "25 s of silence, then words": np.concatenate([np.zeros(samples_of(25.0), np.float32), prompts[3]]),
        "45 s": together[: samples_of(45.0)],
    }
    return {name: decode(wav(clip.astype(np.float32))) for name, clip in clips.items()}


@pytest.mark.slow
@pytest.mark.parametrize("trimmed", [True, pytest.param(False, marks=pytest.mark.full)], ids=["trimmed", "30 s"])
def test_served_text_of_the_evaluation_is_that_of_the_service(
    weights: Path, speech: Path, tmp_path: Path, trimmed: bool
):
    """With trimmed windows, the untrained model loops and stops early: every decision is taken."""
    model, clips = bundle_of(tmp_path / "b", weights) if trimmed else weights, difficult_clips(speech)
    transcripts = open_system(str(model)).transcribe(list(clips.values()), "en")
    served = {name: both.served.text for name, both in zip(clips, transcripts, strict=True)}
    raw = {name: both.raw.text for name, both in zip(clips, transcripts, strict=True) if both.raw}
    transcriber = Transcriber(model, threads=1)
    assert {name: transcriber.transcribe(clip, "en").text for name, clip in clips.items()} == served
    models = ServedModels()
    models.put(load(model, "m"))
    app = build_app(TranscriptionService(models, InProcessDecoder()), RequestLimits(), ServiceMetrics())
    with TestClient(app) as client:
        for name, clip in clips.items():
            fields = {"model": "m", "language": "en"}
            response = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(clip))}, data=fields)
            assert (name, response.json()["text"]) == (name, served[name])
    assert served["nothing"] == served["noise"] == "" != raw["noise"] + raw["nothing"] + raw["floor"]
    assert served["45 s"].count(" ") > 60 and raw.keys() == served.keys()
    assert raw["a sentence"] == served["a sentence"] or trimmed


def test_engine_has_the_chunk_before_the_vad_starts():
    engine, seen = FakeSpeechEngine(), list[int]()

    class Vad(FixedVad):
        def speech(self, waveform: Waveform, options: VadOptions | None = None) -> list[Span]:
            seen.append(len(engine.received_chunks))
            return super().speech(waveform, options)

    service = TranscriptionService(engine, InProcessDecoder())
    service.vad = Vad([Span(0, 16_000)])  # pyright: ignore[reportAttributeAccessIssue]

    async def transcribe() -> int:
        options = TranscribeOptions("student", "en")
        return len([chunk async for chunk in service.transcribe(np.zeros(16_000, np.float32), options)])

    assert asyncio.run(transcribe()) == 1 and seen == [1]
