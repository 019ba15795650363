import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from serving import FakeSpeechEngine, build_test_app
from starlette.websockets import WebSocketDisconnect

from askd_ray.serve.live import websocket
from askd_ray.serve.openai_api import RequestLimits

URL = "/v1/realtime?intent=transcription"


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(build_test_app(FakeSpeechEngine(), RequestLimits(keys=("secret",)))) as client:
        yield client


def connect(client: TestClient, url: str = URL, **options: Any) -> Any:
    return client.websocket_connect(url, **({"headers": {"Authorization": "Bearer secret"}} | options))


def closed(socket: Any) -> tuple[int, str]:
    with pytest.raises(WebSocketDisconnect) as end:
        while True:
            socket.receive_json()
    return end.value.code, end.value.reason


def test_session_over_a_websocket(client: TestClient):
    with connect(client) as socket:
        created = socket.receive_json()
        assert created["type"] == "session.created"
        assert created["session"]["type"] == "transcription"
        assert created["session"]["audio"]["input"]["transcription"]["model"] == "student"
        socket.send_text("no JSON")
        assert socket.receive_json()["type"] == "error"
        socket.send_json({"type": "input_audio_buffer.clear"})
        assert socket.receive_json()["type"] == "input_audio_buffer.cleared"
    for model in ("other", "student", ""):
        with connect(client, f"{URL}&model={model}") as socket:
            session = socket.receive_json()["session"]
            assert session["audio"]["input"]["transcription"]["model"] == (model or "student")


def test_api_keys_of_websockets(client: TestClient):
    with pytest.raises(WebSocketDisconnect) as refused, connect(client, headers={}):
        pass
    assert refused.value.code == 1008
    protocols = ["realtime", "openai-insecure-api-key.secret"]
    with connect(client, headers={}, subprotocols=protocols) as socket:
        assert socket.accepted_subprotocol == "realtime"


def test_unknown_model_is_refused(client: TestClient):
    with connect(client, f"{URL}&model=whisper-9") as socket:
        assert closed(socket) == (1008, "The model 'whisper-9' does not exist.")


def test_session_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    with connect(client) as socket:
        socket.send_bytes(b"\x00")
        assert closed(socket)[0] == 1003
    monkeypatch.setattr(websocket, "MAX_MESSAGE_CHARS", 10)
    with connect(client) as socket:
        socket.send_text("a" * 11)
        assert closed(socket)[0] == 1009
    monkeypatch.setattr(websocket, "IDLE_S", 0.05)
    with connect(client) as socket:
        code, reason = closed(socket)
        assert code == 1001 and "No event arrived" in reason
    monkeypatch.setattr(websocket, "SESSION_S", 0.05)
    monkeypatch.setattr(websocket, "IDLE_S", 60.0)
    with connect(client) as socket:
        code, reason = closed(socket)
        assert code == 1001 and "A session lasts" in reason


@pytest.mark.parametrize("event_id", ["\ud800", "a\udfffb", "\x00", "\U0001f600", None, 7, float("inf"), ["x"]])
def test_any_event_id_is_echoed(client: TestClient, event_id: Any):
    with connect(client) as socket:
        socket.receive_json()
        for event in ({"type": "\ud801"}, {"type": "session.update", "session": {"\udc00": {"\udc00": "\udc00"}}}):
            socket.send_text(json.dumps({**event, "event_id": event_id}))
        error, updated = socket.receive_json(), socket.receive_json()
        assert error["error"]["event_id"] == (event_id if isinstance(event_id, str) else None)
        assert updated["ignored"] == [{"param": "session.\udc00", "reason": "this field is not known"}]


@pytest.mark.parametrize("model", ["\u00e9" * 200, "\U0001f600" * 100, "a" * 5000])
def test_close_reason_fits_the_frame(client: TestClient, model: str):
    with connect(client, f"{URL}&model={quote(model)}") as socket:
        code, reason = closed(socket)
    assert code == 1008 and reason.startswith("The model '") and len(reason.encode()) <= 123


def test_failed_session_closes_with_a_frame(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_: Any) -> None:
        raise OSError("/home/me/engine.sock")

    monkeypatch.setattr(websocket.Session, "begin", fail)
    with connect(client) as socket:
        assert closed(socket) == (1011, "The service failed.")


def test_close_code_asks_to_retry_without_models(monkeypatch: pytest.MonkeyPatch):
    async def none(_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(FakeSpeechEngine, "models", none)
    with TestClient(build_test_app(FakeSpeechEngine(), RequestLimits())) as client, connect(client) as socket:
        assert closed(socket)[0] == 1013
