import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.testclient import TestClient

from askd_ray.serve.proxy import middlewares


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(middleware=middlewares())

    @app.get("/plain/{status}")
    def plain(status: int) -> PlainTextResponse:
        return PlainTextResponse("Traceback: /home/me", status)

    @app.get("/json/{status}")
    def as_json(status: int) -> JSONResponse:
        return JSONResponse({"error": "as it was"}, status)

    return TestClient(app)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "unknown_url"), (429, "rate_limit_exceeded"), (503, "unavailable"), (500, None), (408, None)],
)
def test_plain_text_becomes_openais_json(client: TestClient, status: int, code: str | None):
    answer = client.get(f"/plain/{status}")
    error = answer.json()["error"]
    assert answer.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code and "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_all_else_stays_as_it_is(client: TestClient):
    assert client.get("/plain/200").text == "Traceback: /home/me"
    assert client.get("/json/500").json() == {"error": "as it was"}
