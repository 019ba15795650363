"""The events that a session sends, and what it says of an event that it cannot carry out."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
MAX_QUOTED_CHARS = 100  # of what a client wrote: a name may be as long as a message


class EventError(Exception):
    """An event that cannot be carried out; the session goes on. ``type`` is OpenAI's: whose mistake it is."""

    type = "invalid_request_error"

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


class ServiceError(EventError):
    """An event that failed through no fault of the client's."""

    type = "server_error"


class EventSender:
    """Writes the events of one session."""

    def __init__(self, send: Send):
        self._send = send

    async def say(self, kind: str, **fields: Any) -> None:
        """Send an event of a type."""
        await self._send({"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields})

    async def say_of_item(self, item_id: str, kind: str, **fields: Any) -> None:
        """Send an event about the transcript of an item: ``delta``, ``completed`` or ``failed``."""
        name = f"conversation.item.input_audio_transcription.{kind}"
        await self.say(name, item_id=item_id, content_index=0, **fields)

    async def refuse(self, error: EventError, event_id: object) -> None:
        """Send an error, with the id that the client gave to the event (only a string can be one)."""
        body = {"type": error.type, "message": error.message, "code": error.code, "param": error.param}
        await self.say("error", error={**body, "event_id": event_id if isinstance(event_id, str) else None})


def quoted(text: str) -> str:
    """Return what a client wrote, for a message: in quotes, and cut where it is long."""
    return repr(text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}...")
