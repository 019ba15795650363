"""Real tiny.en, real speech: concurrent requests get the same texts as single requests."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from serving import InProcessDecoder, spoken

from askd_ray.audio.units import samples_of
from askd_ray.errors import AskdError
from askd_ray.models.transcript import Decoding
from askd_ray.serve import engine
from askd_ray.serve.engine import LoadedModel, ServedModels, load
from askd_ray.serve.transcription import Transcription
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService, UnknownModelError
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import n_cores


@pytest.mark.parametrize(("cores", "paying", "workers"), [(2, 1, 2), (2, 2, 1), (8, 4, 2), (1, 1, 1)])
def test_cores_run_parallel_calls_when_threads_do_not_speed_up(
    cores: int, paying: int, workers: int, monkeypatch: pytest.MonkeyPatch, weights: Path
):
    monkeypatch.setattr(engine, "n_cores", lambda: cores)
    monkeypatch.setattr(engine, "allocate_threads", lambda *_: paying)
    assert engine.allocate_hardware(weights) == engine.Hardware("cpu", paying, workers)
    assert engine.allocate_hardware(weights, threads=3).workers == max(1, cores // 3)
    assert engine.allocate_hardware(weights, "cuda") == engine.Hardware("cuda", workers=2, batch_s=480.0)


@pytest.mark.slow
def test_hardware_is_allocated_by_timing_the_model(weights: Path):
    found = engine.allocate_hardware(weights)
    assert found.threads * found.workers <= n_cores()


@pytest.fixture(scope="module")
def loaded(weights: Path) -> LoadedModel:
    return load(weights, "tiny.en")


def build_service(loaded: LoadedModel) -> TranscriptionService:
    models = ServedModels()
    models.put(loaded)
    return TranscriptionService(models, InProcessDecoder())


async def transcribe(service: TranscriptionService, waveform: np.ndarray, options: TranscribeOptions) -> Transcription:
    chunks = [chunk async for chunk in service.transcribe(waveform, options)]
    return Transcription(tuple(s for chunk in chunks for s in chunk.segments), "en", len(waveform) / 16_000)


@pytest.mark.full
@pytest.mark.slow
def test_concurrent_texts_equal_single_texts(loaded: LoadedModel, speech: Path):
    """Clips and a long recording together, in any batches; no request affects another one."""
    clips = [waveform for waveform, _ in spoken(speech, 8)]
    recording = np.concatenate([p for clip in clips for p in (clip, np.zeros(samples_of(0.6), np.float32))])
    requests = [
        (clip, TranscribeOptions("tiny.en", decoding=Decoding(confidence=i % 2 == 0)))
        for i, clip in enumerate([*clips, recording])
    ]

    async def together(n: int) -> list[Transcription]:
        service = build_service(loaded)
        return await asyncio.gather(*(transcribe(service, *options) for _ in range(n) for options in requests))

    async def alone() -> list[Transcription]:
        return [await transcribe(build_service(loaded), *options) for options in requests]

    expected = asyncio.run(alone())
    found = asyncio.run(together(2))
    assert found == expected * 2
    assert len({transcription.text for transcription in expected}) == len(expected)
    normalize = normalizer("en")
    references = [normalize(text) for _, text in spoken(speech, 8)]
    assert count_word_errors(references, [normalize(transcription.text) for transcription in expected[:-1]]).rate < 0.1
    whole = count_word_errors([" ".join(references)], [normalize(expected[-1].text)])
    assert whole.rate < 0.1  # no word lost or doubled at the borders of chunks


@pytest.mark.slow
def test_word_times_match_the_speech(loaded: LoadedModel, speech: Path):
    """The same clip behind five seconds of silence: all words come five seconds later."""
    ((clip, _),) = spoken(speech)
    options = TranscribeOptions("tiny.en", decoding=Decoding(confidence=True))
    early = asyncio.run(transcribe(build_service(loaded), clip, options))
    later = np.concatenate([np.zeros(samples_of(25.0), np.float32), clip])  # over 20 s: only the speech is decoded
    late = asyncio.run(transcribe(build_service(loaded), later, options))
    assert late.text == early.text
    starts = [(a.start_s, b.start_s) for a, b in zip(early.words, late.words, strict=True)]
    assert all(b - a == pytest.approx(25.0, abs=0.3) for a, b in starts)
    assert all(0.0 < w.probability <= 1.0 for w in early.words)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in zip(early.words, early.words[1:], strict=False))


@pytest.mark.slow
def test_invalid_requests_are_refused(loaded: LoadedModel, speech: Path):
    ((clip, _),) = spoken(speech)
    service = build_service(loaded)
    with pytest.raises(UnknownModelError, match=r"'whisper-9' does not exist: 'tiny\.en'"):
        asyncio.run(service.engine.transcribe_chunk(clip, TranscribeOptions("whisper-9"), "me"))
    with pytest.raises(AskdError, match="English-only"):
        asyncio.run(build_service(loaded).engine.transcribe_chunk(clip, TranscribeOptions("tiny.en", "fr"), "me"))
    asyncio.run(build_service(loaded).engine.check())


@pytest.mark.slow
def test_long_prompt_is_cut_at_the_start(loaded: LoadedModel, speech: Path):
    ((clip, _),) = spoken(speech)
    options = TranscribeOptions("tiny.en", "en", Decoding(prompt="Asterisk, voicemail. " * 400))
    assert asyncio.run(transcribe(build_service(loaded), clip, options)).text
    assert len(loaded.engine.fit_prompt("nine " * 1000).split()) == 223
    assert loaded.engine.fit_prompt("short") == "short"
