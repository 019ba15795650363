"""Which requests with audio are let in: those whose body is not too large and does not stall, while there is room."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.api_errors import ApiError, busy
from askd_ray.serve.limits import MAX_FILE_BYTES, MAX_TEXT_BYTES, too_large

MAX_BODY_BYTES = MAX_FILE_BYTES + MAX_TEXT_BYTES
MIN_BYTES_PER_S = 1024  # each as many bring a body another second: recorders that send while somebody speaks are slow
_AUDIO = "/v1/audio/"


class Admission:
    """ASGI middleware: read the body of a request with audio, then let it in where fewer than ``max_requests`` are.

    A client that stalls holds no one's place, since places are counted from when the body is there, and it is answered
    408: a body has ``upload_s``, and a second more for each :data:`MIN_BYTES_PER_S` that came, ``max_upload_s`` in all.
    What is held of all bodies, those that are still coming too, is as much as ``max_requests`` files may have.
    """

    def __init__(self, app: ASGIApp, max_requests: int, upload_s: float, max_upload_s: float):
        self._app, self._max_requests = app, max_requests
        self._upload_s, self._max_upload_s = upload_s, max_upload_s
        self._n_requests, self._held_bytes = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not str(scope["path"]).startswith(_AUDIO):
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            self._check_room()  # before anything is read, and once more when all is
            if _declared_length(scope) > MAX_BODY_BYTES:
                raise too_large()
            is_whole = await self._read(receive, body)
            self._check_room()
        except ApiError as refusal:
            self._held_bytes -= len(body)
            # Who stalls is not waited for any longer; others may still be sending, and read the answer afterwards.
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

    def _check_room(self) -> None:
        if self._n_requests >= self._max_requests:
            raise busy()

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Read a body; returns whether it has an end, or the client went before.

        Raises :class:`ApiError` 408 for a client that is too slow, 413 for too large a body, and 429 where too much
        is held.
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
            if self._held_bytes + len(chunk) > self._max_requests * MAX_BODY_BYTES:
                raise busy()
            self._held_bytes += len(chunk)
            body += chunk
        return True


def _replayed(whole: list[bytes], receive: Receive) -> Receive:
    """Return what hands out a body that was read, which is then held no longer, and whatever comes after it."""

    async def replay() -> Message:
        return {"type": "http.request", "body": whole.pop(), "more_body": False} if whole else await receive()

    return replay


def _too_slow(n_bytes: int) -> ApiError:
    return ApiError(408, f"The request's body came too slowly: only {n_bytes} bytes of it in time.", code="timeout")


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0
