"""The service with a CTC student: words with times, live captions, and what it refuses."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from ctc_student import known_clips
from fastapi.testclient import TestClient
from serving import build_test_app, wav

import askd_ray as askd
from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION, samples_of
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.transcript import UnitPath
from askd_ray.runs import Run
from askd_ray.serve.engine import LoadedModel, ServedModels, allocate_hardware, load
from askd_ray.serve.listener import Address
from askd_ray.serve.live.joined import HOP, LEFT, MAX_WORD, RIGHT
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.ray_engine import EngineReplica
from askd_ray.serve.registry import Registry
from askd_ray.serve.settings import ServiceArgs
from askd_ray.serve.swap import load_verified
from askd_ray.serve.transcription_service import ChunkResult, TranscribeOptions
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import n_cores

pytestmark = pytest.mark.slow
_POSITIONS_PER_S = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION


@pytest.fixture(scope="module")
def clip(speech: Path) -> Utterance:
    """The longest of the clips that the student knows."""
    return max(known_clips(speech), key=lambda clip: clip.duration_s)


@pytest.fixture(scope="module")
def loaded(ctc_run: Run) -> LoadedModel:
    hardware = allocate_hardware(ctc_run.bundle)  # times it with one and two threads
    assert hardware.threads * hardware.workers <= n_cores()
    return load_verified(ctc_run.bundle, "student", hardware)


class CountingModels(ServedModels):
    """Counts the audio that the engine encodes, in seconds."""

    n_chunks, chunk_s, n_pieces, piece_s = 0, 0.0, 0, 0.0

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        self.n_chunks, self.chunk_s = self.n_chunks + 1, self.chunk_s + duration_s(chunk)
        return await super().transcribe_chunk(chunk, options, owner)

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        self.n_pieces, self.piece_s = self.n_pieces + 1, self.piece_s + duration_s(piece)
        return await super().read_path(piece, options, owner)


@pytest.fixture
def models(loaded: LoadedModel) -> CountingModels:
    models = CountingModels()
    models.put(loaded)
    return models


@pytest.fixture
def client(models: CountingModels) -> Iterator[TestClient]:
    with TestClient(build_test_app(models)) as client:  # type: ignore[arg-type]
        yield client


def post(client: TestClient, clip: Utterance, task: str = "transcriptions", **fields: Any) -> httpx.Response:
    data = {"model": "student", "response_format": "verbose_json", **fields}
    return client.post(f"/v1/audio/{task}", files={"file": ("a.wav", wav(waveform_of(clip)))}, data=data)


def word_error_rate(clip: Utterance, text: str) -> float:
    normalize = normalizer("en")
    return count_word_errors([normalize(clip.text)], [normalize(text)]).rate


def test_words_and_segments_have_times(client: TestClient, clip: Utterance):
    answer = post(client, clip, **{"timestamp_granularities[]": ["word", "segment"]}).json()
    assert word_error_rate(clip, answer["text"]) < 0.2 and answer["language"] == "english"
    words, segments = answer["words"], answer["segments"]
    assert " ".join(word["word"] for word in words) == answer["text"].strip()
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and 0.0 <= times[0] and times[-1] <= clip.duration_s
    assert times[-1] - times[0] > 0.4 * clip.duration_s  # spread over the clip
    assert "".join(segment["text"] for segment in segments).strip() == answer["text"]
    assert all(-1.0 < s["avg_logprob"] < 0.0 and 0.0 <= s["no_speech_prob"] < 0.5 for s in segments)


def test_later_speech_has_later_times(client: TestClient, clip: Utterance):
    """The cut of a chunk may change a word, so the words of both texts are compared."""

    def starts(waveform: np.ndarray) -> dict[str, float]:
        data = {"model": "student", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        answer = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(waveform))}, data=data).json()
        return {word["word"]: word["start"] for word in answer["words"]}

    early = starts(waveform_of(clip))
    late = starts(np.concatenate([np.zeros(samples_of(25.0), np.float32), waveform_of(clip)]))
    shifts = [late[word] - early[word] for word in early.keys() & late.keys()]
    assert len(shifts) >= 4 and float(np.median(shifts)) == pytest.approx(25.0, abs=0.3)


def test_prompt_has_no_effect(client: TestClient, clip: Utterance):
    with_prompt = post(client, clip, prompt="Ada, Grace, and other names. " * 300)
    assert with_prompt.status_code == 200 and with_prompt.json()["text"] == post(client, clip).json()["text"]


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("translations", {}, "cannot translate: it knows 'en' only"),
        ("transcriptions", {"temperature": "0.4"}, "a CTC student does not sample"),
        ("transcriptions", {"language": "fr"}, "language 'fr': model 'student': only 'en' is allowed"),
    ],
)
def test_what_ctc_cannot_do_is_a_client_error(
    client: TestClient, clip: Utterance, task: str, fields: dict[str, str], message: str
):
    response = post(client, clip, task, **fields)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_live_captions(client: TestClient, models: CountingModels, clip: Utterance):
    """The turn is cut from the stream, and the student knows only whole clips: so the words are only similar."""
    pause = np.zeros(SAMPLE_RATE_HZ, np.float32)
    audio = np.concatenate([pause, waveform_of(clip), pause])
    settings = {"format": {"type": "audio/pcm", "rate": 16000}, "transcription": {"model": "student"}}
    with client.websocket_connect("/v1/realtime?intent=transcription") as socket:
        session = {"type": "transcription", "audio": {"input": settings}}
        socket.send_text(json.dumps({"type": "session.update", "session": session}))
        for piece in np.array_split(np.round(32767 * np.clip(audio, -1, 1)).astype("<i2"), 30):
            encoded = base64.b64encode(piece.tobytes()).decode()
            socket.send_text(json.dumps({"type": "input_audio_buffer.append", "audio": encoded}))
            time.sleep(0.05)  # captions end with the turn
        events: list[dict[str, Any]] = [{"type": ""}]
        while not events[-1]["type"].endswith("transcription.completed"):
            events.append(socket.receive_json())
            assert events[-1]["type"] != "error", events[-1]
    assert word_error_rate(clip, events[-1]["transcript"]) < 0.7
    deltas = [event["delta"] for event in events if event["type"].endswith("transcription.delta")]
    assert len(deltas) >= 2 and all(delta.strip() for delta in deltas)
    assert word_error_rate(clip, "".join(deltas)) < 0.7
    turn_s = events[-1]["usage"]["seconds"]
    assert models.n_chunks == 1 and models.chunk_s == turn_s  # the final text
    assert models.n_pieces <= turn_s * _POSITIONS_PER_S / HOP
    assert models.piece_s <= models.n_pieces * (LEFT + MAX_WORD + HOP + RIGHT) / _POSITIONS_PER_S


@pytest.mark.full
def test_live_captions_on_ray(ray_session: None, ctc_run: Run, clip: Utterance):
    async def speak(url: str) -> list[str]:
        pause, deltas = np.zeros(SAMPLE_RATE_HZ, np.float32), list[str]()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            async with client.realtime.connect(model="student", extra_query={"intent": "transcription"}) as socket:
                audio = {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}
                await socket.session.update(session={"type": "transcription", "audio": audio})  # type: ignore[typeddict-item]
                for piece in np.array_split(np.concatenate([pause, waveform_of(clip), pause]), 30):
                    samples = np.round(32767 * np.clip(piece, -1, 1)).astype("<i2").tobytes()
                    await socket.input_audio_buffer.append(audio=base64.b64encode(samples).decode())
                    await asyncio.sleep(0.05)  # captions end with the turn
                async for event in socket:
                    assert event.type != "error", event
                    if event.type.endswith("transcription.delta"):
                        deltas.append(event.delta)  # type: ignore[union-attr]
                    if event.type.endswith("transcription.completed"):
                        return deltas
        raise AssertionError("the session ended")

    args = ServiceArgs(models={"student": str(ctc_run.bundle)}, threads=1)
    try:
        deltas = asyncio.run(speak(serve_bundles(args, Address(port=0), blocking=False)))
    finally:
        stop_serving()
    assert len(deltas) >= 2 and word_error_rate(clip, "".join(deltas)) < 0.7


def test_replica_reads_paths(ctc_run: Run, clip: Utterance):
    replica = EngineReplica(ServiceArgs(models={"student": str(ctc_run.bundle)}, threads=1))
    assert [model.reads_paths for model in asyncio.run(replica.models())] == [True]
    path = asyncio.run(replica.read_path(waveform_of(clip), TranscribeOptions("student", "en"), "turn"))
    text = b"".join(unit for unit, _ in groupby(path.units)).decode()
    assert word_error_rate(clip, text) < 0.2 and len(path.units) == len(waveform_of(clip)) // SAMPLES_PER_POSITION


def test_model_with_a_decoder_reads_no_paths(weights: Path):
    models = ServedModels()
    models.put(load(weights, "tiny.en"))
    options = TranscribeOptions("tiny.en", "en")
    with pytest.raises(AskdError, match=r"model 'tiny\.en' has a decoder"):
        asyncio.run(models.read_path(np.zeros(SAMPLE_RATE_HZ, np.float32), options, "turn"))


def test_python_api(ctc_run: Run, clip: Utterance):
    result = askd.load(ctc_run.bundle).transcribe(waveform_of(clip), prompt="names")
    assert word_error_rate(clip, result.text) < 0.2
    assert len(result.words) == len(result.text.split()) and all(0.0 < w.probability <= 1.0 for w in result.words)


def test_registry_takes_the_version_of_the_weights(ctc_run: Run, registry: Registry, loaded: LoadedModel):
    folder = registry.add("student", ctc_run.bundle)
    assert folder.name == loaded.model.version and (folder / "onnx-int8" / "model.onnx").is_file()
