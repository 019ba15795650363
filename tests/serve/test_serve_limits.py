from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import FakeSpeechEngine, build_test_app

from askd_ray.errors import AskdError
from askd_ray.serve.limits import KEYS_VARIABLE, read_keys
from askd_ray.serve.openai_api import RequestLimits


def test_api_key_is_required_when_keys_are_set():
    with TestClient(build_test_app(FakeSpeechEngine(), RequestLimits(keys=("first", "second")))) as client:
        none, wrong = client.get("/v1/models"), client.get("/v1/models", headers={"Authorization": "Bearer secnod"})
        for answer in (none, wrong):
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401
        for key in ("first", "second"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200


def test_cross_origin_requests_need_an_allowed_origin():
    origin = {"Origin": "https://a.example"}
    with TestClient(build_test_app(FakeSpeechEngine())) as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    with TestClient(build_test_app(FakeSpeechEngine(), RequestLimits(origins=("https://a.example",)))) as client:
        assert client.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == "https://a.example"


def test_keys_are_read_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n", encoding="utf-8")
    monkeypatch.setenv(KEYS_VARIABLE, "three, four,")
    assert read_keys(file) == ("one", "two")
    assert read_keys(None) == ("three", "four")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(AskdError, match="is empty"):
        read_keys(file)
    with pytest.raises(AskdError, match="cannot be read"):
        read_keys(tmp_path / "gone")
