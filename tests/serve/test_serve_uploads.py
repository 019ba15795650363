import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving import FakeSpeechEngine, build_test_app, spoken, wav

from askd_ray.serve.limits import MAX_FILE_BYTES
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits
from askd_ray.serve.replicas import OneReplica
from askd_ray.serve.uploads import MAX_BODY_BYTES, Admission

URL = "/v1/audio/transcriptions"
MULTIPART = [(b"content-type", b"multipart/form-data; boundary=B")]


async def raw(
    receive: Any, headers: list[tuple[bytes, bytes]], app: FastAPI | Admission | None = None, path: str = URL
) -> list[dict[str, Any]]:
    """Send one request as raw ASGI messages, and return the raw answer."""
    answers: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await (app or build_test_app(FakeSpeechEngine()))({**scope, "http_version": "1.1"}, receive, send)
    return answers


def test_too_large_content_length_is_refused_unread():
    async def never_read() -> dict[str, object]:
        raise AssertionError("the body was read")

    answers = asyncio.run(raw(never_read, [(b"content-length", b"99999999")]))
    assert answers[0]["status"] == 413


def test_too_large_chunked_body_is_refused_while_reading():
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    read = 0

    async def endless() -> dict[str, object]:
        nonlocal read
        body = part if read == 0 else bytes(1 << 20)
        read += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    answers = asyncio.run(raw(endless, MULTIPART))
    assert answers[0]["status"] == 413
    assert b'"param":"file"' in answers[1]["body"]
    assert read <= MAX_BODY_BYTES + (1 << 20)


def test_full_service_is_429_with_retry_after(speech: Path):
    engine, clip = FakeSpeechEngine(), wav(spoken(speech)[0][0])

    async def crowd() -> list[httpx.Response]:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(build_test_app(engine, RequestLimits(requests=3)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form: dict[str, Any] = {"files": {"file": clip}, "data": {"model": "student"}}
            tasks = [asyncio.create_task(client.post(URL, **form)) for _ in range(5)]
            while sum(task.done() for task in tasks) < 2:
                await asyncio.sleep(0.01)
            engine.gate.set()
            answers = list(await asyncio.gather(*tasks))
            return [*answers, await client.post(URL, **form)]

    *answers, later = asyncio.run(asyncio.wait_for(crowd(), 30))
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 429, 429]
    busy = next(a for a in answers if a.status_code == 429)
    assert busy.json()["error"]["type"] == "rate_limit_error"
    assert busy.headers["retry-after"] == "1"
    assert later.status_code == 200


def test_requests_are_divided_among_the_ingress_processes(speech: Path):
    engine, clip, replicas = FakeSpeechEngine(), wav(spoken(speech)[0][0]), OneReplica(ServiceMetrics())

    async def n_accepted(n_replicas: int) -> int:
        replicas.count, engine.gate = n_replicas, asyncio.Event()
        transport = httpx.ASGITransport(build_test_app(engine, RequestLimits(requests=5), replicas=replicas))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form: dict[str, Any] = {"files": {"file": clip}, "data": {"model": "student"}}
            tasks = [asyncio.create_task(client.post(URL, **form)) for _ in range(7)]
            while sum(task.done() for task in tasks) + max(1, 5 // n_replicas) < len(tasks):
                await asyncio.sleep(0.01)
            engine.gate.set()
            return [answer.status_code for answer in await asyncio.gather(*tasks)].count(200)

    for n_replicas, expected in ((1, 5), (2, 2), (9, 1)):
        assert asyncio.run(asyncio.wait_for(n_accepted(n_replicas), 30)) == expected


def form_of(audio: bytes) -> bytes:
    request = httpx.Request("POST", f"http://test{URL}", files={"file": audio}, data={"model": "student"})
    boundary = request.headers["content-type"].rpartition("=")[2].encode()
    return request.read().replace(boundary, b"B")


@pytest.mark.parametrize("path", [URL, "/v1/audio/translations"])
def test_stalled_upload_is_408_and_takes_no_slot(speech: Path, path: str):
    """64 stalled uploads once blocked all other requests without a time limit."""
    clip, stalled = form_of(wav(spoken(speech)[0][0])), list[int]()

    def sending(body: bytes, more: bool) -> Any:
        chunks = [body]

        async def receive() -> dict[str, Any]:
            if not chunks:
                stalled.append(1)
                await asyncio.Event().wait()
            return {"type": "http.request", "body": chunks.pop(), "more_body": more}

        return receive

    async def scenario() -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
        app = build_test_app(FakeSpeechEngine(), RequestLimits(requests=2, upload_s=1.0))
        tasks = [asyncio.create_task(raw(sending(clip[:500], True), MULTIPART, app, path)) for _ in range(6)]
        while len(stalled) < 6:
            await asyncio.sleep(0.01)
        served = await raw(sending(clip, False), MULTIPART, app)
        return await asyncio.gather(*tasks), served

    answers, served = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert served[0]["status"] == 200
    for start, body in answers:
        assert start["status"] == 408 and (b"connection", b"close") in start["headers"]
        assert b'"code":"timeout"' in body["body"] and b"500 bytes" in body["body"]


def admission(app: Any, max_requests: int = 1, upload_s: float = 0.02, max_upload_s: float = 600.0) -> Admission:
    return Admission(app, lambda: max_requests, upload_s, max_upload_s)


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


@pytest.mark.parametrize(("max_upload_s", "status"), [(600.0, 200), (0.05, 408)])
def test_slow_steady_upload_has_a_total_time_limit(max_upload_s: float, status: int):
    chunks = [bytes(4096)] * 20  # each is worth 4 s

    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        chunks.pop()
        return {"type": "http.request", "body": bytes(4096), "more_body": bool(chunks)}

    app = admission(answer_ok, max_upload_s=max_upload_s, upload_s=5.0)
    assert asyncio.run(raw(slow, MULTIPART, app))[0]["status"] == status


def test_total_body_memory_is_bounded():
    """A request counts when its body is complete, so many clients may upload: their bodies share one memory limit."""
    size, begun = MAX_BODY_BYTES - 1, asyncio.Event()

    async def scenario() -> list[int]:
        gate, app = asyncio.Event(), admission(answer_ok, upload_s=600.0)

        async def first() -> dict[str, Any]:
            if begun.is_set():
                await gate.wait()
                return {"type": "http.request", "body": b"", "more_body": False}
            begun.set()
            return {"type": "http.request", "body": bytes(size), "more_body": True}

        async def second() -> dict[str, Any]:
            return {"type": "http.request", "body": b"ab", "more_body": False}

        holding = asyncio.create_task(raw(first, MULTIPART, app))
        await begun.wait()
        refused = await raw(second, MULTIPART, app)
        gate.set()
        held = await holding
        assert held[1]["body"] == str(size).encode()
        later = await raw(second, MULTIPART, app)
        return [answers[0]["status"] for answers in (refused, held, later)]

    assert asyncio.run(scenario()) == [429, 200, 200]


@pytest.mark.parametrize("fails", [RuntimeError("broken"), asyncio.CancelledError()])
def test_failed_request_frees_the_slot(fails: BaseException):
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise fails

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(MAX_FILE_BYTES), "more_body": False}

    async def broken() -> dict[str, Any]:
        raise fails

    async def scenario() -> None:
        app = admission(failing)
        for receive in (whole, broken, whole, broken, whole):
            with pytest.raises(type(fails)):
                await raw(receive, MULTIPART, app)

    asyncio.run(scenario())


def test_disconnect_during_upload_gets_no_response():
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def scenario() -> None:
        app = admission(answer_ok)
        assert await raw(gone, MULTIPART, app) == []
        assert await raw(gone, MULTIPART, app) == []

    asyncio.run(scenario())
