"""What Ray Serve's HTTP proxy says by itself, such as when a replica dies: OpenAI's JSON instead of plain text.

Ray Serve imports :func:`middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it; for a cluster of one's
own, :func:`askd_ray.ray_cluster.connect` sees to that.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.api_errors import ApiError, busy, server_error


class JsonErrors:
    """ASGI middleware: replace answers from 400 on that are plain text."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        replaced = False

        async def told(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
                replaced = not any(kind.startswith(b"application/json") for kind in kinds)
                if replaced:
                    return await _answer(message["status"]).response()(scope, receive, send)
            if not replaced:
                await send(message)
            return None

        await self._app(scope, receive, told if scope["type"] == "http" else send)


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
