"""The events that a session sends, and the errors for events that it cannot process."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
MAX_QUOTED_CHARS = 100  # of client input in a message: a name may be as long as a whole event


class EventError(Exception):
    """An event that cannot be processed; the session continues. ``type`` is OpenAI's error type."""

    type = "invalid_request_error"

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


class ServiceError(EventError):
    """An event that failed because of the server."""

    type = "server_error"


class EventSender:
    """Sends the events of one session."""

    def __init__(self, send: Send):
        self._send = send

    async def send_event(self, kind: str, **fields: Any) -> None:
        """Send an event of the type ``kind``."""
        await self._send({"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields})

    async def send_item_event(self, item_id: str, kind: str, **fields: Any) -> None:
        """Send an event about the transcript of an item: ``delta``, ``completed`` or ``failed``."""
        name = f"conversation.item.input_audio_transcription.{kind}"
        await self.send_event(name, item_id=item_id, content_index=0, **fields)

    async def send_error(self, error: EventError, event_id: object) -> None:
        """Send an error with the client's id of the event; an id that is no string becomes null."""
        body = {"type": error.type, "message": error.message, "code": error.code, "param": error.param}
        await self.send_event("error", error={**body, "event_id": event_id if isinstance(event_id, str) else None})


def quoted(text: str) -> str:
    """Return client input for a message: in quotes, and shortened where it is long."""
    return repr(text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}...")
