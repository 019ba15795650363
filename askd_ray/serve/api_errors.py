"""HTTP error responses in OpenAI's format.

Bad input always gets a 4xx status. OpenAI's clients retry after each 5xx status, so a 500 for a bad file would cost
three runs.
"""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An HTTP error response."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON body; all four keys are always present."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """Return the HTTP response."""
        retry = {"Retry-After": "1"} if self.status in (429, 503) else {}
        challenge = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.body(), self.status, headers={**retry, **challenge, **(headers or {})})


def busy() -> ApiError:
    """Return the error for a request that exceeds the limit of concurrent requests."""
    return ApiError(429, "The server is busy: try again in a moment.", code="rate_limit_exceeded")


def server_error() -> ApiError:
    """Return the error for an unexpected failure; it shows no internal detail."""
    return ApiError(500, "The server had an error while processing the request.")


def answer_errors(app: FastAPI) -> None:
    """Make an app send all errors in OpenAI's format."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code in (404, 405):
            message = f"Unknown request: {request.method} {request.url.path}"
            answer = ApiError(error.status_code, message, code="unknown_url")
        else:
            answer = ApiError(error.status_code, str(error.detail))
        return answer.response(dict(error.headers or {}))

    async def unexpected(_: Request, error: Exception) -> Response:
        _log.error("unexpected failure", exc_info=error)
        return server_error().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
