"""What Ray Serve's HTTP proxy says by itself, such as when a replica dies: OpenAI's JSON instead of plain text; and
what it says besides the app, once.

Ray Serve imports :func:`middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it; for a cluster of one's
own, :func:`askd_ray.ray_cluster.connect` sees to that.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.api_errors import ApiError, busy, server_error

_ID = b"x-request-id"
_log = logging.getLogger(__name__)


class JsonErrors:
    """ASGI middleware: replace answers from 400 on that are plain text, and failures without any.

    Of the request's ids, the app's and the proxy's own behind it, the first is sent.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun, replaced = False, False

        async def told(message: Message) -> None:
            nonlocal begun, replaced
            begun = True
            if message["type"] == "http.response.start" and message["status"] >= 400:
                kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
                replaced = not any(kind.startswith(b"application/json") for kind in kinds)
                if replaced:
                    return await _answer(message["status"]).response()(scope, receive, send)
            if not replaced:
                await send(_with_one_id(message))
            return None

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, receive, told)
        except Exception as error:
            if begun:
                raise
            _log.error("the proxy failed: %s", type(error).__name__)
        if not begun:  # so it ends where a replica dies
            await server_error().response()(scope, receive, send)
        return None


def _with_one_id(message: Message) -> Message:
    headers = message.get("headers", [])
    ids = [header for header in headers if header[0].lower() == _ID]
    if len(ids) < 2:
        return message
    return {**message, "headers": [*(header for header in headers if header not in ids), ids[0]]}


def _answer(status: int) -> ApiError:
    if status == 429:
        return busy()
    if status in (404, 405):
        return ApiError(status, "Unknown request: nothing is served there.", code="unknown_url")
    if status == 503:
        return ApiError(503, "The service is starting, or has no replica: try again in a moment.", code="unavailable")
    return server_error() if status >= 500 else ApiError(status, "The request cannot be answered.")


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy wraps around itself."""
    return [Middleware(JsonErrors)]
