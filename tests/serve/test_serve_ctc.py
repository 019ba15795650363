"""The service with a CTC student: words with times, live captions, and what it refuses."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ctc_student import known_clips
from fastapi.testclient import TestClient
from serving import build_test_app, wav

import askd_ray as askd
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.runs import Run
from askd_ray.serve.engine import LoadedModel, ServedModels, allocate_hardware
from askd_ray.serve.registry import Registry
from askd_ray.serve.swap import load_verified
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import n_cores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(speech: Path) -> Utterance:
    """The longest of the clips that the student knows."""
    return max(known_clips(speech), key=lambda clip: clip.duration_s)


@pytest.fixture(scope="module")
def loaded(ctc_run: Run) -> LoadedModel:
    hardware = allocate_hardware(ctc_run.bundle)  # times it with one and two threads
    assert hardware.threads * hardware.workers <= n_cores()
    return load_verified(ctc_run.bundle, "student", hardware)


@pytest.fixture
def client(loaded: LoadedModel) -> Iterator[TestClient]:
    models = ServedModels()
    models.put(loaded)
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


def test_live_captions(client: TestClient, clip: Utterance):
    pause = np.zeros(SAMPLE_RATE_HZ, np.float32)
    audio = np.concatenate([pause, waveform_of(clip), pause])
    settings = {"format": {"type": "audio/pcm", "rate": 16000}, "transcription": {"model": "student"}}
    with client.websocket_connect("/v1/realtime?intent=transcription") as socket:
        session = {"type": "transcription", "audio": {"input": settings}}
        socket.send_text(json.dumps({"type": "session.update", "session": session}))
        for piece in np.array_split(np.round(32767 * np.clip(audio, -1, 1)).astype("<i2"), 30):
            encoded = base64.b64encode(piece.tobytes()).decode()
            socket.send_text(json.dumps({"type": "input_audio_buffer.append", "audio": encoded}))
        event: dict[str, Any] = {"type": ""}
        while not event["type"].endswith("transcription.completed"):
            event = socket.receive_json()
            assert event["type"] != "error", event
    # The turn is cut from the stream, and the student knows only whole clips.
    assert word_error_rate(clip, event["transcript"]) < 0.7


def test_python_api(ctc_run: Run, clip: Utterance):
    result = askd.load(ctc_run.bundle).transcribe(waveform_of(clip), prompt="names")
    assert word_error_rate(clip, result.text) < 0.2
    assert len(result.words) == len(result.text.split()) and all(0.0 < w.probability <= 1.0 for w in result.words)


def test_registry_takes_the_version_of_the_weights(ctc_run: Run, registry: Registry, loaded: LoadedModel):
    folder = registry.add("student", ctc_run.bundle)
    assert folder.name == loaded.model.version and (folder / "onnx-int8" / "model.onnx").is_file()
