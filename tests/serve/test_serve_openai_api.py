import asyncio
import logging
import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from askd_ray.audio.decode import AudioError
from askd_ray.errors import AskdError
from askd_ray.serve import openai_api
from askd_ray.serve.engine import Transcription
from askd_ray.serve.openai_api import MAX_FILE_BYTES, build_app

URL = "/v1/audio/transcriptions"


class FakeEngine:
    """Answers with what it was given; raises or waits when told to."""

    name = "student"

    def __init__(self):
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.languages: list[str] = []

    def transcribe(self, audio: bytes, language: str = "en") -> Transcription:
        self.languages.append(language)
        self.check()
        return Transcription(f"{len(audio)} bytes, secret words", 1.2)

    def check(self) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(build_app(engine)) as client:
        yield client


def post(client: TestClient, audio: bytes | None = b"abc", **fields: str) -> httpx.Response:
    files = {} if audio is None else {"file": ("a.wav", audio)}
    return client.post(URL, files=files, data={"model": "student"} | fields)


def error_of(response: httpx.Response, status: int) -> dict[str, str | None]:
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    return error


def test_json_and_text(client: TestClient, engine: FakeEngine):
    answer = post(client).json()
    assert answer == {"text": "3 bytes, secret words", "usage": {"type": "duration", "seconds": 2}}
    text = post(client, response_format="text", language="de")
    assert text.text == "3 bytes, secret words"
    assert text.headers["content-type"].startswith("text/plain")
    assert engine.languages == ["en", "de"]


def test_what_clients_send_and_the_model_does_not_need_is_accepted(client: TestClient):
    assert post(client, prompt="Hello", temperature="0.2", stream="false").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": "verbose_json"}, "response_format", "'json' or 'text'"),
        ({"temperature": "2"}, "temperature", "less than or equal to 1"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"language": "English"}, "language", "pattern"),
        ({"stream": "true"}, "stream", "only false"),
    ],
)
def test_bad_fields_name_the_field_and_what_is_allowed(
    client: TestClient, fields: dict[str, str], param: str, said: str
):
    error = error_of(post(client, **fields), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in str(error["message"])


def test_missing_fields(client: TestClient):
    assert error_of(client.post(URL, data={"model": "student"}), 400)["param"] == "file"
    assert error_of(client.post(URL, files={"file": b"abc"}), 400)["param"] == "model"
    assert error_of(client.post(URL, data={"model": "student", "file": "no file"}), 400)["param"] == "file"
    assert error_of(client.post(URL, json={"model": "student"}), 400)["param"] == "file"


def test_a_broken_form(client: TestClient):
    headers = {"content-type": "multipart/form-data; boundary=B"}
    error_of(client.post(URL, content=b"--B\r\nno header", headers=headers), 400)
    error_of(client.post(URL, content=b"x", headers={"content-type": "multipart/form-data"}), 400)


def test_unknown_model_path_and_method(client: TestClient):
    assert error_of(post(client, model="whisper-9"), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/models/whisper-9"), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    wrong = client.get(URL)
    assert error_of(wrong, 405)["code"] == "unknown_url"
    assert wrong.headers["allow"] == "POST"


def test_models(client: TestClient):
    listed = client.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["student"]
    assert client.get("/v1/models/student").json() == listed["data"][0]


@pytest.mark.parametrize(
    ("error", "param"), [(AudioError("longer than 5 s"), "file"), (AskdError("language 'xx': unknown"), "language")]
)
def test_what_the_client_can_mend_is_400(client: TestClient, engine: FakeEngine, error: Exception, param: str):
    engine.error = error
    answer = error_of(post(client), 400)
    assert answer["param"] == param
    assert str(error) in str(answer["message"])


def test_a_failure_of_ours_is_500_and_says_nothing_of_the_inside(client: TestClient, engine: FakeEngine):
    engine.error = RuntimeError("/home/me/model.bin: out of memory")
    error = error_of(post(client), 500)
    assert error["type"] == "api_error"
    assert "model.bin" not in str(error["message"])
    engine.error = None
    assert post(client).status_code == 200


def test_a_mistake_in_the_server_itself_is_500_too(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openai_api, "PlainTextResponse", None)
    client = TestClient(build_app(engine), raise_server_exceptions=False)
    assert error_of(post(client, response_format="text"), 500)["type"] == "api_error"


def test_the_largest_file_is_taken_and_one_byte_more_is_not(client: TestClient):
    assert post(client, bytes(MAX_FILE_BYTES)).json()["text"].startswith("26214400 bytes")
    error = error_of(post(client, bytes(MAX_FILE_BYTES + 1)), 413)
    assert error["param"] == "file"
    assert "26214400" in str(error["message"])


def test_a_declared_length_is_refused_before_anything_is_read(engine: FakeEngine):
    async def never_read() -> dict[str, object]:
        raise AssertionError("the body was read")

    answers = asyncio.run(_raw(engine, never_read, [(b"content-length", b"99999999")]))
    assert answers[0]["status"] == 413


def test_a_body_of_unknown_length_is_refused_while_it_comes_in(engine: FakeEngine):
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    read = 0

    async def endless() -> dict[str, object]:
        nonlocal read
        body = part if read == 0 else bytes(1 << 20)
        read += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    answers = asyncio.run(_raw(engine, endless, [(b"content-type", b"multipart/form-data; boundary=B")]))
    assert answers[0]["status"] == 413
    assert b'"param":"file"' in answers[1]["body"]
    assert read < MAX_FILE_BYTES + (2 << 20)


async def _raw(engine: FakeEngine, receive, headers: list[tuple[bytes, bytes]]) -> list[dict]:
    """Send one request as raw ASGI messages, and return the raw answer."""
    answers: list[dict] = []

    async def send(message: dict) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
    }
    await build_app(engine)(scope, receive, send)
    return answers


def test_when_all_places_are_taken_it_is_429_with_retry_after(engine: FakeEngine):
    engine.gate = threading.Event()

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(build_app(engine, running=1, waiting=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form = {"files": {"file": b"abc"}, "data": {"model": "student"}}
            tasks = [asyncio.create_task(client.post(URL, **form)) for _ in range(5)]
            while sum(task.done() for task in tasks) < 2:
                await asyncio.sleep(0.01)
            engine.gate.set()
            answers = list(await asyncio.gather(*tasks))
            return [*answers, await client.post(URL, **form)]

    *answers, later = asyncio.run(asyncio.wait_for(crowd(), 10))
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 429, 429]
    busy = next(a for a in answers if a.status_code == 429)
    assert error_of(busy, 429)["type"] == "rate_limit_error"
    assert busy.headers["retry-after"] == "1"
    assert later.status_code == 200


def test_health(client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch):
    assert client.get("/health").json() == {"status": "ok"}
    engine.error = RuntimeError("broken")
    error_of(client.get("/health"), 503)
    engine.error, engine.gate = None, threading.Event()
    monkeypatch.setattr(openai_api, "HEALTH_TIMEOUT_S", 0.05)
    error_of(client.get("/health"), 503)
    engine.gate.set()
    monkeypatch.undo()
    assert client.get("/health").status_code == 200


def test_no_transcript_in_the_logs(client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        assert "secret words" in post(client).text
        engine.error = RuntimeError("broken")
        post(client)
    assert "transcription failed" in caplog.text
    assert "secret words" not in caplog.text
