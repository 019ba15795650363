"""The WebSocket of live captions, with its limits: idle clients, long sessions, large messages, too many of them."""

import asyncio
import contextlib
import json
import time
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from askd_ray.serve.live.session import Session
from askd_ray.serve.recogniser import Recogniser

IDLE_S, SESSION_S, MOST_SESSIONS = 60.0, 3600.0, 32
MOST_MESSAGE_CHARS = 2 << 20  # 30 s of 16-bit audio at 24 kHz, in base64
_GOING_AWAY, _TOO_BIG, _TRY_LATER = 1001, 1009, 1013


def add_realtime(app: FastAPI, recogniser: Recogniser, most_sessions: int = MOST_SESSIONS) -> None:
    """Add ``/v1/realtime`` to the app."""
    sessions: set[Session] = set()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket, model: str | None = None) -> None:  # pyright: ignore[reportUnusedFunction]
        """Serve one client until it goes, idles or its time is over."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        if len(sessions) >= most_sessions:
            return await socket.close(_TRY_LATER, "Too many sessions: try again in a moment.")
        served = [m.name for m in await recogniser.ears.models()]
        if model is not None and model not in served:
            return await socket.close(1008, f"The model {model[:100]!r} does not exist.")
        speaking = asyncio.Lock()

        async def send(event: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # nobody is there any more
                async with speaking:
                    await socket.send_text(json.dumps(event, ensure_ascii=False))

        session = Session(recogniser, send, model or served[0])
        sessions.add(session)
        try:
            await session.begin()
            code, reason = await _converse(socket, session)
            with contextlib.suppress(RuntimeError):
                await socket.close(code, reason)
        except WebSocketDisconnect:
            pass
        finally:
            session.close()
            sessions.discard(session)
        return None


async def _converse(socket: WebSocket, session: Session) -> tuple[int, str]:
    """Pass on what the client says; returns why the session ends."""
    ends_at = time.monotonic() + SESSION_S
    while (left_s := ends_at - time.monotonic()) > 0.0:
        try:
            text = await asyncio.wait_for(socket.receive_text(), min(IDLE_S, left_s))
        except TimeoutError:
            if left_s > IDLE_S:
                return _GOING_AWAY, f"Nothing was heard for {IDLE_S:g} s."
            break
        except KeyError:  # a binary message
            return 1003, "Events are JSON text."
        if len(text) > MOST_MESSAGE_CHARS:
            return _TOO_BIG, f"An event may have {MOST_MESSAGE_CHARS} characters."
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        await session.handle(event)
    return _GOING_AWAY, f"A session lasts {SESSION_S:g} s at most."
