"""One client's session of live captions: it handles events, independent of the WebSocket.

Contract: the events of a session of the type ``transcription`` in
https://platform.openai.com/docs/api-reference/realtime.
"""

import base64
import binascii
import logging
import uuid
from typing import Any, cast

from askd_ray.serve.live.events import EventError, EventSender, Send, ServiceError, quoted
from askd_ray.serve.live.input import AudioInput
from askd_ray.serve.live.update import Update
from askd_ray.serve.transcription_service import TranscriptionService

_log = logging.getLogger(__name__)


class Session:
    """One client's session: handles and sends events. ``default_model`` is used until an update names another model."""

    def __init__(self, service: TranscriptionService, send: Send, default_model: str):
        self._service, self._default = service, default_model
        self._id = f"sess_{uuid.uuid4().hex}"
        self._events = EventSender(send)
        self._input = AudioInput(service, self._events, default_model)

    async def begin(self) -> None:
        """Send ``session.created``."""
        await self._events.send_event("session.created", session=self._session_object())

    async def handle(self, event: object) -> None:
        """Process a client event; an invalid event gets an error and changes nothing."""
        fields = cast(dict[str, Any], event) if isinstance(event, dict) else {}
        try:
            await self._process(fields)
        except EventError as error:
            await self._events.send_error(error, fields.get("event_id"))
        except Exception as error:
            _log.error("an event failed", exc_info=error)
            failure = ServiceError("The event could not be processed.", "server_error")
            await self._events.send_error(failure, fields.get("event_id"))

    async def finish(self, timeout_s: float) -> None:
        """Commit the buffer and wait up to ``timeout_s`` for the transcripts, before the service ends the session."""
        await self._input.finish(timeout_s)

    def close(self) -> None:
        """Cancel all work."""
        self._input.close()

    async def _process(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        match kind:
            case "session.update" | "transcription_session.update":
                await self._update(event.get("session"), beta=kind == "transcription_session.update")
            case "input_audio_buffer.append":
                await self._input.append(_decoded(event.get("audio")))
            case "input_audio_buffer.commit":
                await self._input.commit()
            case "input_audio_buffer.clear":
                await self._input.clear()
            case _:
                known = "session.update and input_audio_buffer.append, .commit and .clear are allowed"
                problem = (
                    f"event type {quoted(kind)} is not known" if isinstance(kind, str) else "an event needs a type"
                )
                raise EventError(f"{problem}: {known}", "unknown_event", "type")

    async def _update(self, session: object, beta: bool) -> None:
        before = self._input.settings
        update = Update(before, session)
        update.settings.check(await self._service.engine.models(), self._default)
        await self._input.change_settings(update.settings)
        name = "transcription_session.updated" if beta else "session.updated"
        await self._events.send_event(name, session=self._session_object(beta), ignored=update.ignored)
        if update.settings.turn_detection != before.turn_detection:
            await self._input.change_turn_detection()

    def _session_object(self, beta: bool = False) -> dict[str, Any]:
        if beta:
            return {"id": self._id, **self._input.settings.as_beta_session(self._default)}
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            **self._input.settings.as_session(self._default),
        }


def _decoded(audio: object) -> bytes:
    """Decode base64.

    Raises :class:`EventError` for anything else.
    """
    try:
        return base64.b64decode(cast(str, audio), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise EventError("input_audio_buffer.append: audio must be base64", param="audio") from None
