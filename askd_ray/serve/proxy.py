"""Middleware for Ray Serve's HTTP proxy: turn its plain-text errors into OpenAI's JSON, and drop its second request id.

Ray Serve imports :func:`middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. On a cluster that askd
starts, :func:`askd_ray.ray_cluster.connect` sets this variable.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.api_errors import ApiError, busy, server_error

_ID = b"x-request-id"
_log = logging.getLogger(__name__)


class JsonErrors:
    """ASGI middleware: replace error responses that are not JSON, and failures without a response.

    The app and the proxy each add a request id to the headers; only the app's id, the first, is sent.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started, replaced = False, False

        async def send_json_errors(message: Message) -> None:
            nonlocal started, replaced
            started = True
            if message["type"] == "http.response.start" and message["status"] >= 400:
                kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
                replaced = not any(kind.startswith(b"application/json") for kind in kinds)
                if replaced:
                    return await _error(message["status"]).response()(scope, receive, send)
            if not replaced:
                await send(_with_one_id(message))
            return None

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, receive, send_json_errors)
        except Exception as error:
            if started:
                raise
            _log.error("the proxy failed: %s", type(error).__name__)
        if not started:  # this happens when a replica dies
            await server_error().response()(scope, receive, send)
        return None


def _with_one_id(message: Message) -> Message:
    headers = message.get("headers", [])
    ids = [header for header in headers if header[0].lower() == _ID]
    if len(ids) < 2:
        return message
    return {**message, "headers": [*(header for header in headers if header not in ids), ids[0]]}


def _error(status: int) -> ApiError:
    if status == 429:
        return busy()
    if status in (404, 405):
        return ApiError(status, "Unknown request: no route exists at this path.", code="unknown_url")
    if status == 503:
        return ApiError(503, "The service is starting or has no replica: try again in a moment.", code="unavailable")
    return server_error() if status >= 500 else ApiError(status, "The request cannot be answered.")


def middlewares() -> list[Middleware]:
    """Return the middleware for Ray Serve's proxy."""
    return [Middleware(JsonErrors)]
