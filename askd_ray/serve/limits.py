"""The size limits of a request, and the check of its API key."""

import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from askd_ray.errors import AskdError
from askd_ray.serve.api_errors import ApiError

MAX_FILE_BYTES = 25 * 1024 * 1024
MAX_TEXT_BYTES = 64 * 1024  # in a form field other than the file
_PROTECTED = ("/v1/", "/metrics")
_BROWSER_KEY = "openai-insecure-api-key."  # OpenAI's prefix: a browser cannot send headers with a WebSocket
KEYS_VARIABLE = "ASKD_API_KEYS"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the accepted API keys: one per line of a file, or $ASKD_API_KEYS, separated by commas. Without keys, every
    request is accepted.

    Raises :class:`AskdError` for a file that cannot be read or holds no key.
    """
    if file is None:
        return tuple(key for key in map(str.strip, os.environ.get(KEYS_VARIABLE, "").split(",")) if key)
    try:
        keys = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise AskdError(f"API keys: {file} cannot be read: {error}") from None
    if not keys:
        raise AskdError(f"API keys: {file} is empty; one key per line is expected")
    return keys


class KeyCheck:
    """ASGI middleware: reject API requests without one of ``keys``. Without keys, every request is accepted."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app, self._keys = app, [key.encode("utf-8") for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        needs_key = scope["type"] in ("http", "websocket") and str(scope["path"]).startswith(_PROTECTED)
        if not self._keys or not needs_key or self._is_known(_key_of(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            message = "Incorrect API key provided." if _key_of(scope) else "No API key provided."
            await ApiError(401, message, code="invalid_api_key").response()(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "Incorrect API key provided."})

    def _is_known(self, key: bytes) -> bool:
        # Compare with every key in constant time: the duration must reveal nothing about the keys.
        return any([hmac.compare_digest(key, known) for known in self._keys])


def _key_of(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    offered = [name.strip() for name in headers.get(b"sec-websocket-protocol", b"").decode("latin-1").split(",")]
    keys = [name.removeprefix(_BROWSER_KEY) for name in offered if name.startswith(_BROWSER_KEY)]
    return keys[0].encode("utf-8") if keys else b""


def too_large() -> ApiError:
    """Return the error for a file with too many bytes."""
    return ApiError(413, f"The file is too large: at most {MAX_FILE_BYTES} bytes are allowed.", "file")
