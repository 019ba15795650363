"""The API with a fake speech engine."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from audio_files import by_ffmpeg, damaged, sweep
from fastapi.testclient import TestClient
from openai.types.audio import TranscriptionTextDoneEvent
from serving import FakeSpeechEngine, build_test_app, spoken, wav

from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import VadOptions
from askd_ray.errors import AskdError
from askd_ray.models.transcript import Transcript
from askd_ray.serve import openai_api, transcription_service
from askd_ray.serve.limits import MAX_FILE_BYTES
from askd_ray.serve.openai_api import RequestLimits
from askd_ray.serve.transcription_service import TranscribeOptions

URL = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def clip(speech: Path) -> bytes:
    return wav(spoken(speech)[0][0])


@pytest.fixture(scope="module")
def long_clip(speech: Path) -> bytes:
    """Over a minute of audio: several chunks."""
    pause = np.zeros(samples_of(0.7), np.float32)
    return wav(np.concatenate([piece for waveform, _ in spoken(speech, 14) for piece in (waveform, pause)]))


@pytest.fixture
def engine() -> FakeSpeechEngine:
    return FakeSpeechEngine()


@pytest.fixture
def client(engine: FakeSpeechEngine) -> Iterator[TestClient]:
    with TestClient(build_test_app(engine)) as client:
        yield client


def post(client: TestClient, audio: bytes | None, url: str = URL, **fields: Any) -> httpx.Response:
    files = {} if audio is None else {"file": ("a.wav", audio)}
    return client.post(url, files=files, data={"model": "student"} | fields)


def error_of(response: httpx.Response, status: int) -> dict[str, str | None]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    return error


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_response_formats(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    n_samples = (len(clip) - 44) // 2
    text = f"Secret {n_samples} samples."
    assert post(client, clip).json()["text"] == text
    assert post(client, clip, response_format="text").text == text + "\n"
    srt, vtt = (post(client, clip, response_format=form).text for form in ("srt", "vtt"))
    assert srt.startswith("1\n00:00:00,") and f"\n{text}\n" in srt
    assert vtt.startswith("WEBVTT\n\n00:00:00.") and f"\n{text}\n" in vtt
    verbose = post(client, clip, response_format="verbose_json", language="en").json()
    assert (verbose["text"], verbose["language"], verbose["task"]) == (text, "english", "transcribe")
    assert verbose["duration"] == pytest.approx(n_samples / 16_000, abs=1e-3)
    (segment,) = verbose["segments"]
    numbers = {"id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert segment.keys() == {*numbers, "text", "tokens"}
    assert segment["tokens"][:3] == [0, 1, 2] and "words" not in verbose
    assert [options.decoding.confidence for options in engine.received_options] == [False, False, True, True, True]


def test_words_have_times_and_probabilities(client: TestClient, clip: bytes):
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word"]}
    verbose = post(client, clip, **fields).json()
    assert "segments" not in verbose
    assert [word["word"] for word in verbose["words"]][::2] == ["Secret", "samples."]
    assert all(word["start"] < word["end"] <= verbose["duration"] for word in verbose["words"])
    both = {**fields, "timestamp_granularities[]": ["word", "segment"]}
    assert {"words", "segments"} <= post(client, clip, **both).json().keys()


def test_streamed_text_equals_unstreamed_text(client: TestClient, long_clip: bytes, engine: FakeSpeechEngine):
    whole = post(client, long_clip).json()
    assert len(engine.received_chunks) > 2
    answer = post(client, long_clip, stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events_of(answer)
    assert [item["type"] for item in deltas] == ["transcript.text.delta"] * len(deltas) and len(deltas) > 2
    assert done["type"] == "transcript.text.done"
    assert "".join(item["delta"] for item in deltas) == done["text"] == whole["text"]
    TranscriptionTextDoneEvent.model_validate(done, strict=True)  # usage is in tokens or absent
    assert set(done) == {"type", "text"} and whole["usage"]["type"] == "duration"


def test_language_of_the_first_chunk_is_used(client: TestClient, long_clip: bytes, engine: FakeSpeechEngine):
    assert post(client, long_clip, response_format="verbose_json").json()["language"] == "german"
    assert [options.language for options in engine.received_options] == [None] + ["de"] * (
        len(engine.received_options) - 1
    )


def test_silence_gives_an_empty_text(client: TestClient, engine: FakeSpeechEngine):
    silence = wav(np.zeros(samples_of(3.0), np.float32))
    assert post(client, silence).json() == {"text": "", "usage": {"type": "duration", "seconds": 3}}
    verbose = post(client, silence, response_format="verbose_json").json()
    assert (verbose["text"], verbose["segments"]) == ("", [])
    assert [item["type"] for item in events_of(post(client, silence, stream="true"))] == ["transcript.text.done"]
    engine.received_chunks.clear()
    assert post(client, wav(np.zeros(samples_of(21.0), np.float32))).json()["text"] == ""
    assert engine.received_chunks == []  # longer audio is transcribed only after speech detection


def test_translations(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    answer = post(client, clip, "/v1/audio/translations", response_format="verbose_json").json()
    assert answer["task"] == "translate" and answer["segments"]
    assert [(options.decoding.task, options.language) for options in engine.received_options] == [("translate", None)]
    english = error_of(post(client, clip, "/v1/audio/translations", model="other"), 400)
    assert english["param"] == "model" and "cannot translate" in str(english["message"])


def test_options_reach_the_engine(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    vad = {"type": "server_vad", "threshold": 0.2, "silence_duration_ms": 700, "prefix_padding_ms": 100}
    fields = {"prompt": "Hello", "temperature": "0.2", "language": "de", "chunking_strategy": json.dumps(vad)}
    assert post(client, clip, **fields).status_code == 200
    (options,) = engine.received_options
    assert (options.decoding.prompt, options.decoding.temperature, options.language) == ("Hello", 0.2, "de")
    assert (options.vad_options.threshold, options.vad_options.silence_s, options.vad_options.padding_s) == (
        0.2,
        0.7,
        0.1,
    )


def test_chunk_with_too_few_words_is_split_in_halves(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    """A model may end after the first of several sentences: the answer would be 200, and most words lost."""
    n_samples = (len(clip) - 44) // 2
    transcript = engine.transcript

    def lazy(chunk: np.ndarray, options: TranscribeOptions) -> Transcript:
        transcribed = transcript(chunk, options)
        return replace(transcribed, text="Secret", token_ids=(1,)) if len(chunk) == n_samples else transcribed

    engine.transcript = lazy
    text = post(client, clip).json()["text"]
    whole, first, second = (len(chunk) for chunk in engine.received_chunks)
    assert whole == n_samples == first + second
    assert text == f"Secret {first} samples. Secret {second} samples."
    engine.transcript = lambda chunk, options: replace(transcript(chunk, options), text="One", token_ids=())
    assert post(client, clip).json()["text"] == "One"  # the halves say no more


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "xml"}, "response_format", "'verbose_json'"),
        ({"temperature": "2"}, "temperature", "less than or equal to 1"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"language": "Englisch"}, "language", "none of Whisper's 100"),
        ({"language": "yue"}, "language", "does not know this language"),
        ({"language": "de", "model": "other"}, "language", "only 'en' is allowed"),
        ({"stream": "true", "response_format": "srt"}, "stream", "srt cannot be streamed"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "needs response_format=verbose_json"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities", "'word' or 'segment'"),
        ({"chunking_strategy": "[" * 60_000}, "chunking_strategy", "'auto' or an object"),
        ({"chunking_strategy": "none"}, "chunking_strategy", "'auto' or an object"),
        ({"chunking_strategy": '{"type": "client_vad"}'}, "chunking_strategy", "server_vad"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 3}'}, "chunking_strategy", "less than 1"),
        ({"chunking_strategy": "{" * 60_000}, "chunking_strategy", "'auto' or an object"),
    ],
)
def test_invalid_fields_are_400_with_allowed_values(
    client: TestClient, clip: bytes, fields: dict[str, str], param: str, message: str
):
    error = error_of(post(client, clip, **fields), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in str(error["message"])


def test_missing_fields(client: TestClient):
    assert error_of(client.post(URL, data={"model": "student"}), 400)["param"] == "file"
    assert error_of(client.post(URL, files={"file": b"abc"}), 400)["param"] == "model"
    assert error_of(client.post(URL, data={"model": "student", "file": "no file"}), 400)["param"] == "file"
    assert error_of(client.post(URL, json={"model": "student"}), 400)["param"] in ("file", "model")


def test_file_part_without_a_name_is_accepted(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    """`curl -F "file=<speech.wav"`: it was answered "<class 'str'>"."""
    named, unnamed = ({"file": (name, clip), "model": (None, "student")} for name in ("a.wav", None))
    texts = [client.post(URL, files=files).json()["text"] for files in (named, unnamed)]
    assert texts[0] == texts[1] and len(engine.received_chunks[0]) == len(engine.received_chunks[1])


def test_openai_client_fields_are_used(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    api = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)
    create = api.audio.transcriptions.create
    vad: Any = {"type": "server_vad", "threshold": 0.2, "silence_duration_ms": 700, "prefix_padding_ms": 100}
    assert create(file=("a.wav", clip), model="student", chunking_strategy=vad, language="en-US").text
    (options,) = engine.received_options
    assert (options.vad_options, options.language) == (VadOptions(0.2, 0.7, 0.1), "en")
    *deltas, done = create(file=("a.wav", clip), model="student", stream=True, chunking_strategy="auto")
    assert done.type == "transcript.text.done" and done.usage is None
    assert "".join(item.delta for item in deltas if item.type == "transcript.text.delta") == done.text
    timed = create(
        file=("a.wav", clip), model="student", response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert timed.words and timed.usage and timed.usage.type == "duration"
    with pytest.raises(openai.BadRequestError, match=r"chunking_strategy\.threshold") as refused:
        create(file=("a.wav", clip), model="student", chunking_strategy={**vad, "threshold": 7})
    assert refused.value.param == "chunking_strategy"
    with pytest.raises(openai.BadRequestError, match="include"):
        create(file=("a.wav", clip), model="student", include=["logprobs"])


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/health", "/metrics", "/v1/models", "/v1/models/student"])
def test_head_requests_get_the_status(client: TestClient, path: str):
    assert client.head(path).status_code == client.get(path).status_code == 200
    error = error_of(client.delete(path), 405)
    assert error["code"] == "unknown_url"
    assert set(client.delete(path).headers["allow"].split(", ")) == {"GET", "HEAD"}  # in any order


def test_broken_form_is_400(client: TestClient):
    headers = {"content-type": "multipart/form-data; boundary=B"}
    error_of(client.post(URL, content=b"--B\r\nno header", headers=headers), 400)
    error_of(client.post(URL, content=b"x", headers={"content-type": "multipart/form-data"}), 400)


@pytest.mark.parametrize("audio", [b"", b"not audio at all"])
def test_bad_audio_is_400(client: TestClient, audio: bytes):
    assert error_of(post(client, audio), 400)["param"] == "file"
    assert error_of(post(client, audio, stream="true"), 400)["param"] == "file"


def test_too_much_decoded_audio_is_429(
    client: TestClient, clip: bytes, monkeypatch: pytest.MonkeyPatch, engine: FakeSpeechEngine
):
    monkeypatch.setattr(transcription_service, "MAX_HELD_S", 8.0)
    transcribe_chunk, inner = engine.transcribe_chunk, list[httpx.Response]()

    async def transcribe_and_request(*args: Any):
        engine.transcribe_chunk = transcribe_chunk
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as other:
            inner.append(await other.post(URL, files={"file": clip}, data={"model": "student"}))
        return await transcribe_chunk(*args)

    engine.transcribe_chunk = transcribe_and_request
    assert post(client, clip).status_code == 200  # one file may be as long as it likes
    assert error_of(inner[0], 429)["code"] == "rate_limit_exceeded"
    assert post(client, clip).status_code == 200


def test_too_long_audio_is_400(clip: bytes):
    client = TestClient(build_test_app(FakeSpeechEngine(), max_audio_s=1.0))
    assert "longer than 1 s" in str(error_of(post(client, clip), 400)["message"])


def test_unknown_model_path_and_method_are_json_errors(client: TestClient, clip: bytes):
    assert error_of(post(client, clip, model="whisper-9"), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/models/whisper-9"), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    wrong = client.get(URL)
    assert error_of(wrong, 405)["code"] == "unknown_url"
    assert wrong.headers["allow"] == "POST"


def test_models(client: TestClient):
    listed = client.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["student", "other"]
    assert client.get("/v1/models/student").json() == listed["data"][0]


def test_user_errors_are_400(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    engine.error = AskdError("language 'xx': unknown")
    assert error_of(post(client, clip), 400)["message"] == "language 'xx': unknown"


def test_internal_errors_are_500_without_details(client: TestClient, clip: bytes, engine: FakeSpeechEngine):
    engine.error = RuntimeError("/home/me/model.bin: out of memory")
    error = error_of(post(client, clip), 500)
    assert error["type"] == "api_error"
    assert "model.bin" not in str(error["message"])
    engine.error = None
    assert post(client, clip).status_code == 200


def test_error_during_a_stream_is_an_event(client: TestClient, long_clip: bytes, engine: FakeSpeechEngine):
    transcribe_chunk = engine.transcribe_chunk

    async def transcribe_first_chunk(*args: Any):
        if engine.received_chunks:
            raise RuntimeError("gone")
        return await transcribe_chunk(*args)

    engine.transcribe_chunk = transcribe_first_chunk
    first, last = events_of(post(client, long_clip, stream="true"))
    assert first["type"] == "transcript.text.delta"
    assert last["type"] == "error" and last["error"]["type"] == "api_error"


def test_request_time_limit(clip: bytes, engine: FakeSpeechEngine):
    engine.gate = asyncio.Event()
    client = TestClient(build_test_app(engine, RequestLimits(request_s=0.2)))
    answer = post(client, clip)
    assert error_of(answer, 503)["code"] == "timeout" and answer.headers["retry-after"]


def test_file_size_limit_is_exact(client: TestClient):
    assert "unreadable" in str(error_of(post(client, bytes(MAX_FILE_BYTES)), 400)["message"])
    error = error_of(post(client, bytes(MAX_FILE_BYTES + 1)), 413)
    assert error["param"] == "file"
    assert "26214400" in str(error["message"])


def test_disconnect_cancels_the_transcription(engine: FakeSpeechEngine, clip: bytes):
    """The form is read, the engine waits at the gate, and the client goes."""
    request = httpx.Request("POST", f"http://test{URL}", files={"file": clip}, data={"model": "student"})
    body, left = request.read(), asyncio.Event()

    async def scenario() -> None:
        engine.gate = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            while not engine.received_chunks:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            pass

        headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
        scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
        transcribe_chunk = engine.transcribe_chunk

        async def transcribe_until_cancelled(*args: Any):
            try:
                return await transcribe_chunk(*args)
            except asyncio.CancelledError:
                left.set()
                raise

        engine.transcribe_chunk = transcribe_until_cancelled
        await asyncio.wait_for(build_test_app(engine)({**scope, "http_version": "1.1"}, receive, send), 10)
        await asyncio.wait_for(left.wait(), 10)

    asyncio.run(scenario())
    assert left.is_set()


def test_health(client: TestClient, engine: FakeSpeechEngine, monkeypatch: pytest.MonkeyPatch):
    assert client.get("/health").json() == {"status": "ok"}
    engine.error = RuntimeError("broken")
    error_of(client.get("/health"), 503)
    engine.error, engine.gate = None, asyncio.Event()
    monkeypatch.setattr(openai_api, "HEALTH_TIMEOUT_S", 0.05)
    error_of(client.get("/health"), 503)


def test_metrics_and_log_contain_no_transcripts(client: TestClient, clip: bytes, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    answer = client.post(
        URL, files={"file": clip}, data={"model": "student", "prompt": "my own name"}, headers={"x-request-id": "abc-1"}
    )
    assert answer.headers["x-request-id"] == "abc-1"
    post(client, b"nothing")
    (line,) = [r.getMessage() for r in caplog.records if "abc-1" in r.getMessage()]
    entry = json.loads(line)
    assert (entry["status"], entry["model"], entry["version"]) == (200, "student", "v1")
    assert entry["audio_s"] > 1.0 and entry["ms"] > 0.0
    numbers = client.get("/metrics").text
    assert f'askd_requests_total{{route="{URL}",status="200"}} 1.0' in numbers
    assert 'askd_rejects_total{reason="audio"} 1.0' in numbers
    assert 'askd_stretches_total{model="student",version="v1"} 1.0' in numbers
    assert "Secret" not in caplog.text and "my own name" not in caplog.text and "Secret" not in numbers


def test_invalid_request_id_is_replaced(client: TestClient):
    answer = client.get("/health", headers={"x-request-id": 'a"b{evil}'})
    assert answer.headers["x-request-id"].isalnum()


def test_damaged_middle_is_skipped_and_reported(client: TestClient, caplog: pytest.LogCaptureFixture):
    holed = damaged(by_ffmpeg(sweep(4.0), "adts", "aac"))
    with caplog.at_level(logging.INFO, logger="askd_ray.requests"):
        for fields in ({}, {"stream": "true"}):
            response = post(client, holed, **fields)
            assert response.status_code == 200
            assert response.headers["x-audio-notes"].startswith(
                "damaged: packets lost: 1, 0.06 s in all, the first at 2."
            )
    logged = [json.loads(record.message)["audio_notes"] for record in caplog.records if "audio_notes" in record.message]
    assert logged == [response.headers["x-audio-notes"]] * 2
    assert "x-audio-notes" not in post(client, by_ffmpeg(sweep(4.0), "adts", "aac")).headers


def test_partial_file_is_accepted_on_request(client: TestClient):
    cut = by_ffmpeg(sweep(4.0), "ogg", "libopus")[:-200]
    assert "truncated: its last Ogg page is cut" in str(error_of(post(client, cut), 400)["message"])
    files, data = {"file": ("a.ogg", cut)}, {"model": "student"}
    accepted = client.post(URL, files=files, data=data, headers={"x-partial-audio": "accept"})
    assert accepted.status_code == 200
    assert accepted.headers["x-audio-notes"] == "truncated: its last Ogg page is cut"
    wrong = client.post(URL, files=files, data=data, headers={"x-partial-audio": "yes"})
    assert error_of(wrong, 400)["message"] == "x-partial-audio: 'yes': accept or refuse is allowed"
