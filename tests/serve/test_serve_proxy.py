import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from askd_ray.serve.proxy import JsonErrors, middlewares


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
def test_plain_text_error_becomes_openai_json(client: TestClient, status: int, code: str | None):
    answer = client.get(f"/plain/{status}")
    error = answer.json()["error"]
    assert answer.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code and "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize("error", [RuntimeError("/home/me"), None])
def test_failure_without_response_becomes_openai_json(error: Exception | None):
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if error is not None:
            raise error

    answer = TestClient(JsonErrors(broken)).get("/")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "api_error"
    assert "/home/me" not in answer.text


def test_request_id_of_the_app_is_kept():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", b"the-apps"), (b"content-type", b"text/plain"), (b"X-Request-ID", b"the-proxys")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"yes"})

    answer = TestClient(JsonErrors(app)).get("/")
    assert answer.text == "yes" and answer.headers["content-type"] == "text/plain"
    assert answer.headers.get_list("x-request-id") == ["the-apps"]


def test_other_responses_are_unchanged(client: TestClient):
    assert client.get("/plain/200").text == "Traceback: /home/me"
    assert client.get("/json/500").json() == {"error": "as it was"}
