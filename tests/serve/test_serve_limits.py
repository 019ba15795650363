import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import FakeEars, app_around, spoken, wav

from askd_ray.errors import AskdError
from askd_ray.serve.limits import KEYS_VARIABLE, MAX_FILE_BYTES, read_keys
from askd_ray.serve.openai_api import Limits

URL = "/v1/audio/transcriptions"


async def raw(receive: Any, headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    """Send one request as raw ASGI messages, and return the raw answer."""
    answers: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
    await app_around(FakeEars())({**scope, "http_version": "1.1"}, receive, send)
    return answers


def test_a_declared_length_is_refused_before_anything_is_read():
    async def never_read() -> dict[str, object]:
        raise AssertionError("the body was read")

    answers = asyncio.run(raw(never_read, [(b"content-length", b"99999999")]))
    assert answers[0]["status"] == 413


def test_a_body_of_unknown_length_is_refused_while_it_comes_in():
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    read = 0

    async def endless() -> dict[str, object]:
        nonlocal read
        body = part if read == 0 else bytes(1 << 20)
        read += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    answers = asyncio.run(raw(endless, [(b"content-type", b"multipart/form-data; boundary=B")]))
    assert answers[0]["status"] == 413
    assert b'"param":"file"' in answers[1]["body"]
    assert read < MAX_FILE_BYTES + (2 << 20)


def test_when_all_places_are_taken_it_is_429_with_retry_after(speech: Path):
    ears, clip = FakeEars(), wav(spoken(speech)[0][0])

    async def crowd() -> list[httpx.Response]:
        ears.gate = asyncio.Event()
        transport = httpx.ASGITransport(app_around(ears, Limits(requests=3)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form: dict[str, Any] = {"files": {"file": clip}, "data": {"model": "student"}}
            tasks = [asyncio.create_task(client.post(URL, **form)) for _ in range(5)]
            while sum(task.done() for task in tasks) < 2:
                await asyncio.sleep(0.01)
            ears.gate.set()
            answers = list(await asyncio.gather(*tasks))
            return [*answers, await client.post(URL, **form)]

    *answers, later = asyncio.run(asyncio.wait_for(crowd(), 30))
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 429, 429]
    busy = next(a for a in answers if a.status_code == 429)
    assert busy.json()["error"]["type"] == "rate_limit_error"
    assert busy.headers["retry-after"] == "1"
    assert later.status_code == 200


def test_with_keys_the_api_asks_for_one():
    with TestClient(app_around(FakeEars(), Limits(keys=("first", "second")))) as client:
        none, wrong = client.get("/v1/models"), client.get("/v1/models", headers={"Authorization": "Bearer secnod"})
        for answer in (none, wrong):
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401
        for key in ("first", "second"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200


def test_other_sites_pages_may_only_ask_where_that_is_allowed():
    origin = {"Origin": "https://a.example"}
    with TestClient(app_around(FakeEars())) as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    with TestClient(app_around(FakeEars(), Limits(origins=("https://a.example",)))) as client:
        assert client.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == "https://a.example"


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n", encoding="utf-8")
    monkeypatch.setenv(KEYS_VARIABLE, "three, four,")
    assert read_keys(file) == ("one", "two")
    assert read_keys(None) == ("three", "four")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(AskdError, match="holds none"):
        read_keys(file)
    with pytest.raises(AskdError, match="cannot be read"):
        read_keys(tmp_path / "gone")
