"""The WebSocket of live captions, with limits on idle time, session length, message size and number of sessions."""

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from askd_ray.serve.live.events import quoted
from askd_ray.serve.live.session import Session
from askd_ray.serve.transcription_service import TranscriptionService

IDLE_S, SESSION_S, MAX_SESSIONS = 60.0, 3600.0, 32
FINISH_S = 30.0  # to wait for the last transcripts when the service ends a session
MAX_MESSAGE_CHARS = 2 << 20  # 30 s of 16-bit audio at 24 kHz, in base64
_GOING_AWAY, _UNSUPPORTED, _POLICY, _TOO_BIG, _FAILED, _TRY_LATER = 1001, 1003, 1008, 1009, 1011, 1013
_MAX_REASON_BYTES = 123  # the limit of a close frame
_log = logging.getLogger(__name__)


def add_realtime(app: FastAPI, service: TranscriptionService, max_sessions: int = MAX_SESSIONS) -> None:
    """Add ``/v1/realtime`` to the app."""
    sessions: set[Session] = set()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket, model: str | None = None) -> None:  # pyright: ignore[reportUnusedFunction]
        """Serve one client until it disconnects, idles or reaches the session limit."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        try:
            code, reason = await _serve(socket, service, model, sessions, max_sessions)
        except WebSocketDisconnect:
            return
        except Exception as error:
            _log.error("a session failed", exc_info=error)
            code, reason = _FAILED, "The service failed."
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client is gone
            await socket.close(code, _close_reason(reason))


async def _serve(
    socket: WebSocket, service: TranscriptionService, model: str | None, sessions: set[Session], max_sessions: int
) -> tuple[int, str]:
    """Run the session of a client; return the close code and the reason."""
    if len(sessions) >= max_sessions:
        return _TRY_LATER, "Too many sessions: try again in a moment."
    served = [m.name for m in await service.engine.models()]
    if not served:
        return _TRY_LATER, "No model is served yet: try again in a moment."
    if model and model not in served:
        return _POLICY, f"The model {quoted(model)} does not exist."
    sending = asyncio.Lock()

    async def send(event: dict[str, Any]) -> None:
        # JSON escaped to ASCII: it may contain half a surrogate pair, which UTF-8 cannot encode.
        text = json.dumps(event)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client is gone
            async with sending:
                await socket.send_text(text)

    session = Session(service, send, model or served[0])
    sessions.add(session)
    try:
        await session.begin()
        ending = await _handle_events(socket, session)
        await session.finish(FINISH_S)
        return ending
    finally:
        session.close()
        sessions.discard(session)


async def _handle_events(socket: WebSocket, session: Session) -> tuple[int, str]:
    """Pass the client's events to the session; return the close code and the reason."""
    ends_at = time.monotonic() + SESSION_S
    while (left_s := ends_at - time.monotonic()) > 0.0:
        try:
            text = await asyncio.wait_for(socket.receive_text(), min(IDLE_S, left_s))
        except TimeoutError:
            if left_s > IDLE_S:
                return _GOING_AWAY, f"No event arrived for {IDLE_S:g} s."
            break
        except KeyError:  # a binary message
            return _UNSUPPORTED, "Events are JSON text."
        if len(text) > MAX_MESSAGE_CHARS:
            return _TOO_BIG, f"An event may have {MAX_MESSAGE_CHARS} characters."
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        await session.handle(event)
    return _GOING_AWAY, f"A session lasts {SESSION_S:g} s at most."


def _close_reason(reason: str) -> str:
    """Shorten a reason to the limit of a close frame."""
    return reason.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
