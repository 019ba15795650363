"""Admission of requests with audio: limits on their number, the size of the body, and the rate of the upload."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.api_errors import ApiError, busy
from askd_ray.serve.limits import MAX_FILE_BYTES, MAX_TEXT_BYTES, too_large

MAX_BODY_BYTES = MAX_FILE_BYTES + MAX_TEXT_BYTES
MIN_BYTES_PER_S = 1024  # minimum upload rate; recorders that send while somebody speaks are slow
_AUDIO = "/v1/audio/"


class Admission:
    """ASGI middleware: read the body of a request with audio, then accept it if few requests are active.

    ``max_requests()`` is their largest number now.
    A request counts as active when its body is complete, so a stalled upload blocks nobody. A body has ``upload_s``,
    plus one second for each :data:`MIN_BYTES_PER_S` received, ``max_upload_s`` in all; then the response is 408. All
    bodies together, incomplete ones included, may take the memory of as many files of the largest size.
    """

    def __init__(self, app: ASGIApp, max_requests: Callable[[], int], upload_s: float, max_upload_s: float):
        self._app, self._max_requests = app, max_requests
        self._upload_s, self._max_upload_s = upload_s, max_upload_s
        self._n_requests, self._held_bytes = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not str(scope["path"]).startswith(_AUDIO):
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            self._check_capacity()  # before the body is read, and again after it
            if _declared_length(scope) > MAX_BODY_BYTES:
                raise too_large()
            is_whole = await self._read(receive, body)
            self._check_capacity()
        except ApiError as refusal:
            self._held_bytes -= len(body)
            # Close a stalled connection; other clients may still be sending, and read the response afterwards.
            headers = {"Connection": "close"} if refusal.status == 408 else {}
            return await refusal.response(headers)(scope, receive, send)
        except BaseException:
            self._held_bytes -= len(body)
            raise
        n_bytes, whole = len(body), [bytes(body)]
        body.clear()
        self._n_requests += 1
        try:
            if is_whole:
                await self._app(scope, _replayed(whole, receive), send)
        finally:
            self._n_requests -= 1
            self._held_bytes -= n_bytes
        return None

    def _check_capacity(self) -> None:
        if self._n_requests >= self._max_requests():
            raise busy()

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Read a body; return False if the client disconnects before its end.

        Raises :class:`ApiError` 408 for a client that is too slow, 413 for too large a body, and 429 where all bodies
        together take too much memory.
        """
        begun_at, more = asyncio.get_running_loop().time(), True
        while more:
            allowed_s = min(self._upload_s + len(body) / MIN_BYTES_PER_S, self._max_upload_s)
            try:
                async with asyncio.timeout_at(begun_at + allowed_s):
                    message = await receive()
            except TimeoutError:
                raise _too_slow(len(body)) from None
            if message["type"] == "http.disconnect":
                return False
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(chunk) > MAX_BODY_BYTES:
                raise too_large()
            if self._held_bytes + len(chunk) > self._max_requests() * MAX_BODY_BYTES:
                raise busy()
            self._held_bytes += len(chunk)
            body += chunk
        return True


def _replayed(whole: list[bytes], receive: Receive) -> Receive:
    """Return a ``receive`` that first returns the body that was read, and releases it, then later messages."""

    async def replay() -> Message:
        return {"type": "http.request", "body": whole.pop(), "more_body": False} if whole else await receive()

    return replay


def _too_slow(n_bytes: int) -> ApiError:
    return ApiError(408, f"The request's body came too slowly: only {n_bytes} bytes of it in time.", code="timeout")


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0
