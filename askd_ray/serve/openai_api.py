"""The OpenAI audio API as a FastAPI app, around anything that transcribes.

Contract: https://platform.openai.com/docs/api-reference/audio/createTranscription. Bad input is always answered with
4xx: OpenAI's clients try again after anything from 500 on, so a bad file answered with 500 costs three runs.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.audio.decode import AudioError
from askd_ray.errors import AskdError
from askd_ray.serve.engine import Transcription

MAX_FILE_BYTES = 25 * 1024 * 1024
_FORM_BYTES = 64 * 1024  # what the other fields of the form and its boundaries may take
RUNNING, WAITING = 4, 32  # transcriptions at once, and in line behind them
HEALTH_TIMEOUT_S = 15.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Transcribes(Protocol):
    """What the API needs of an engine; :class:`askd_ray.serve.engine.Transcriber` is the real one."""

    name: str

    def transcribe(self, audio: bytes, language: str = "en") -> Transcription:
        """Return the text of an audio file. Called from several threads at once."""
        ...

    def check(self) -> None:
        """Run a tiny inference; raises when it fails."""
        ...


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """Return the HTTP response; all four keys are always there."""
        kind = {429: "rate_limit_error"}.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        retry = {"Retry-After": "1"} if self.status == 429 else {}
        return JSONResponse({"error": error}, self.status, headers={**retry, **(headers or {})})


class Workers:
    """Threads for inference: ``running`` calls at once and ``waiting`` more in line; any beyond are refused."""

    def __init__(self, running: int, waiting: int):
        self._threads = ThreadPoolExecutor(running)
        self._places = Semaphore(running + waiting)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in a thread. Raises :class:`ApiError` 429 when all places are taken."""
        if not self._places.acquire(blocking=False):
            raise ApiError(429, "The server is busy: try again in a moment.", code="rate_limit_exceeded")
        future = self._threads.submit(work)
        # A caller who hangs up gives back a place in line at once, but a thread only when its work is done.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


class BodyLimit:
    """ASGI middleware: refuse a request body over ``max_bytes``, by its declared length or while it comes in."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise HTTPException(413, _too_large().message)  # FastAPI lets this kind through its form parser
            return message

        if scope["type"] == "http" and _declared_length(scope) > self._max_bytes:
            await _too_large().response()(scope, receive, send)
        else:
            await self._app(scope, counted if scope["type"] == "http" else receive, send)


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0


def _too_large() -> ApiError:
    return ApiError(413, f"The file is too large: at most {MAX_FILE_BYTES} bytes are allowed.", "file")


def build_app(engine: Transcribes, running: int = RUNNING, waiting: int = WAITING) -> FastAPI:
    """Return the app that serves one model: ``/v1/audio/transcriptions``, ``/v1/models`` and ``/health``."""
    app = FastAPI(title="askd-ray", description="Speech to text with the OpenAI audio API")
    app.add_middleware(BodyLimit, max_bytes=MAX_FILE_BYTES + _FORM_BYTES)
    _answer_errors(app)
    _add_transcriptions(app, engine, Workers(running, waiting))
    _add_models(app, engine)
    _add_health(app, engine)
    return app


def _add_transcriptions(app: FastAPI, engine: Transcribes, workers: Workers) -> None:
    @app.post("/v1/audio/transcriptions")
    async def transcriptions(  # pyright: ignore[reportUnusedFunction]
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        language: Annotated[str | None, Form(pattern="^[a-z]{2,3}$")] = None,
        prompt: Annotated[str | None, Form()] = None,
        response_format: Annotated[Literal["json", "text"], Form()] = "json",
        temperature: Annotated[float, Form(ge=0.0, le=1.0)] = 0.0,
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        """Transcribe an audio file. Decoding is greedy: ``prompt`` and ``temperature`` are accepted and not used."""
        _check_model(model, engine)
        if stream:
            raise ApiError(400, "stream: only false is allowed", "stream")
        if (file.size or 0) > MAX_FILE_BYTES:
            raise _too_large()
        audio = await file.read()
        result = await _transcribe(lambda: engine.transcribe(audio, language or "en"), workers)
        if response_format == "text":
            return PlainTextResponse(result.text)
        usage = {"type": "duration", "seconds": math.ceil(result.duration_s)}
        return JSONResponse({"text": result.text, "usage": usage})


async def _transcribe(work: Callable[[], Transcription], workers: Workers) -> Transcription:
    try:
        return await workers.run(work)
    except AudioError as error:
        raise ApiError(400, f"The audio cannot be transcribed: {error}", "file") from None
    except AskdError as error:  # loading is over: the only mistake left is a language that the model does not know
        raise ApiError(400, str(error), "language") from None
    except ApiError:
        raise
    except Exception as error:
        _log.error("transcription failed", exc_info=error)
        raise _server_error() from None


def _server_error() -> ApiError:
    return ApiError(500, "The server had an error while processing the request.")


def _add_models(app: FastAPI, engine: Transcribes) -> None:
    card = {"id": engine.name, "object": "model", "created": int(time.time()), "owned_by": "askd-ray"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """List the one model that is served."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Describe a model."""
        _check_model(model, engine)
        return card


def _check_model(model: str, engine: Transcribes) -> None:
    if model != engine.name:
        message = f"The model {model!r} does not exist: {engine.name!r} is served here."
        raise ApiError(404, message, "model", "model_not_found")


def _add_health(app: FastAPI, engine: Transcribes) -> None:
    # Its own thread: the check must neither wait behind long files nor, when inference hangs, leave a thread each time.
    workers = Workers(running=1, waiting=8)

    @app.get("/health")
    async def health() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Run a tiny inference, since a server whose inference hangs still answers."""
        try:
            await asyncio.wait_for(workers.run(engine.check), HEALTH_TIMEOUT_S)
        except Exception as error:
            _log.error("health check failed: %s", type(error).__name__)
            raise ApiError(503, "The model does not answer.", code="unhealthy") from None
        return {"status": "ok"}


def _answer_errors(app: FastAPI) -> None:
    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return ApiError(400, f"{param}: {first['msg']}", param).response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code in (404, 405):
            message = f"Unknown request: {request.method} {request.url.path}"
            answer = ApiError(error.status_code, message, code="unknown_url")
        else:
            answer = ApiError(error.status_code, str(error.detail), "file" if error.status_code == 413 else None)
        return answer.response(dict(error.headers or {}))

    async def unexpected(_: Request, error: Exception) -> Response:
        _log.error("unexpected failure", exc_info=error)
        return _server_error().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
