"""One client's session of live captions, event by event; it knows no WebSocket.

Contract: the events of a session of the type ``transcription`` in
https://platform.openai.com/docs/api-reference/realtime.
"""

import asyncio
import base64
import binascii
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Turns
from askd_ray.models.engine import Decoding
from askd_ray.serve.formats import usage
from askd_ray.serve.live.agreement import Agreement
from askd_ray.serve.live.audio import LiveAudio, TurnDetector
from askd_ray.serve.live.settings import SessionSettings
from askd_ray.serve.recogniser import Ask, Recogniser

MOST_TURN_S = 20.0  # a longer turn is committed where it is
MOST_BUFFER_S = 120.0  # without turn detection, what may wait for a commit
_PARTIAL_S = 0.2  # of new audio, before another partial result is worth it
_log = logging.getLogger(__name__)
Send = Callable[[dict[str, Any]], Awaitable[None]]


class EventError(Exception):
    """An event that cannot be carried out; the session goes on."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


@dataclass
class _Turn:
    """One utterance: its item, the audio so far, and what was shown of its text."""

    item_id: str
    start: int  # sample of the session
    agreement: Agreement = field(default_factory=Agreement)
    partial: "asyncio.Task[None] | None" = None
    heard_samples: int = 0


class Session:
    """One client's session: takes events, and sends events. It knows no WebSocket."""

    def __init__(self, recogniser: Recogniser, send: Send, default_model: str):
        self._recogniser, self._send, self._default = recogniser, send, default_model
        self._id = f"sess_{uuid.uuid4().hex}"
        self._finals: set[asyncio.Task[None]] = set()
        self._last_item: str | None = None
        self._settings = SessionSettings()
        self._clear()
        self._listen()

    async def begin(self) -> None:
        """Tell the client that the session is there."""
        await self._say("session.created", session=self._described())

    async def handle(self, event: Any) -> None:
        """Carry out an event of the client's; a mistake is answered and changes nothing."""
        name = event.get("type") if isinstance(event, dict) else None
        try:
            if name == "session.update":
                await self._update(event)
            elif name == "input_audio_buffer.append":
                await self._append(event)
            elif name == "input_audio_buffer.commit":
                await self._commit_by_hand()
            elif name == "input_audio_buffer.clear":
                self._clear()
                self._listen()
                await self._say("input_audio_buffer.cleared")
            else:
                raise EventError(f"event type {name!r} is not known", "unknown_event", "type")
        except EventError as error:
            told = {"type": "invalid_request_error", "message": error.message, "code": error.code, "param": error.param}
            await self._say(
                "error", error={**told, "event_id": event.get("event_id") if isinstance(event, dict) else None}
            )

    def close(self) -> None:
        """Stop all work."""
        for task in [*self._finals, *([self._turn.partial] if self._turn and self._turn.partial else [])]:
            task.cancel()

    async def _update(self, event: dict[str, Any]) -> None:
        try:
            settings = SessionSettings.model_validate(event.get("session"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["session", *map(str, first["loc"])])
            raise EventError(f"{where}: {first['msg']}", param=where) from None
        if settings.include:
            raise EventError("session.include: nothing of it is known here", param="session.include")
        wanted = settings.audio.input.transcription
        model = next(
            (m for m in await self._recogniser.ears.models() if m.name == (wanted.model or self._default)), None
        )
        if model is None:
            raise EventError(
                f"The model {wanted.model!r} does not exist.",
                "model_not_found",
                "session.audio.input.transcription.model",
            )
        if wanted.language is not None and wanted.language not in model.languages:
            raise EventError(
                f"language {wanted.language!r} is not known to the model {model.name!r}",
                param="session.audio.input.transcription.language",
            )
        if len(self._buffer) and settings.audio.input.format != self._settings.audio.input.format:
            raise EventError("session.audio.input.format cannot change while audio waits: commit or clear it first")
        self._settings = settings
        self._listen()
        await self._say("session.updated", session=self._described())

    def _listen(self) -> None:
        """Begin to listen as the settings say."""
        wanted = self._settings.audio.input
        self._audio = LiveAudio(wanted.format.type, wanted.format.rate_hz)
        vad = wanted.turn_detection
        self._turns = Turns() if vad is None else vad.turns()
        self._detector = None if vad is None else TurnDetector(self._recogniser.vad, self._turns)
        self._offset = self._n_samples  # of the session, at which the detector began

    def _clear(self) -> None:
        self._buffer: Waveform = np.zeros(0, np.float32)  # what is not committed yet
        self._n_samples = getattr(self, "_n_samples", 0)
        turn: _Turn | None = getattr(self, "_turn", None)
        if turn is not None and turn.partial is not None:
            turn.partial.cancel()
        self._turn: _Turn | None = None

    async def _append(self, event: dict[str, Any]) -> None:
        try:
            audio = base64.b64decode(event.get("audio", ""), validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise EventError("input_audio_buffer.append: audio is no base64", param="audio") from None
        waveform = self._audio.push(audio)
        if self._detector is None:
            if duration_s(self._buffer) + duration_s(waveform) > MOST_BUFFER_S:
                raise EventError(
                    f"the buffer holds {MOST_BUFFER_S:g} s at most: commit or clear it", "buffer_full", "audio"
                )
            self._take(waveform)
            return
        for piece in np.array_split(waveform, max(1, len(waveform) // samples_of(_PARTIAL_S))):
            await self._follow(piece)

    def _take(self, waveform: Waveform) -> None:
        self._buffer = np.concatenate([self._buffer, waveform])
        self._n_samples += len(waveform)

    async def _follow(self, waveform: Waveform) -> None:
        """Go along with the turns in what came in."""
        assert self._detector is not None
        self._take(waveform)
        for event in self._detector.push(waveform):
            sample = self._offset + event.sample
            if event.started:
                start = max(sample, self._n_samples - len(self._buffer))
                self._turn = _Turn(_item_id(), start)
                await self._say(
                    "input_audio_buffer.speech_started", audio_start_ms=_ms(start), item_id=self._turn.item_id
                )
            elif self._turn is not None:
                await self._say(
                    "input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=self._turn.item_id
                )
                await self._end_turn(sample)
        if self._turn is not None and self._n_samples - self._turn.start >= samples_of(MOST_TURN_S):
            await self._end_turn(self._n_samples)
            self._turn = _Turn(_item_id(), self._n_samples)  # who speaks goes on speaking
        if self._turn is not None:
            self._hear_partly(self._turn)
        else:  # nobody speaks: only what the next turn may reach back to is kept
            kept = samples_of(self._turns.padding_s + 0.5)
            self._buffer = self._buffer[-kept:]

    def _since(self, start: int, end: int | None = None) -> Waveform:
        """Return the samples of the buffer from ``start`` to ``end`` of the session."""
        first = self._n_samples - len(self._buffer)
        return self._buffer[max(0, start - first) : None if end is None else max(0, end - first)]

    def _hear_partly(self, turn: _Turn) -> None:
        """Have the turn so far transcribed, unless that is being done or there is little new."""
        waveform = self._since(turn.start)
        if turn.partial is None and len(waveform) - turn.heard_samples >= samples_of(_PARTIAL_S):
            turn.heard_samples = len(waveform)
            turn.partial = asyncio.create_task(self._show(turn, waveform))

    async def _show(self, turn: _Turn, waveform: Waveform) -> None:
        try:
            hearing = await self._recogniser.ears.hear(waveform, self._ask(), turn.item_id)
            delta = turn.agreement.update(hearing.transcript.text)
            if delta:
                await self._say_of(turn, "delta", delta=delta)
        except Exception as error:  # the client hears of it if the final result fails too
            _log.warning("a partial result failed: %s", type(error).__name__)
        finally:
            turn.partial = None

    async def _commit_by_hand(self) -> None:
        if self._turn is None and len(self._buffer) < samples_of(0.1):
            raise EventError(
                "input_audio_buffer.commit: at least 100 ms of audio are needed", "input_audio_buffer_commit_empty"
            )
        if self._turn is None:
            self._turn = _Turn(_item_id(), self._n_samples - len(self._buffer))
        await self._end_turn(self._n_samples)
        self._clear()
        self._listen()

    async def _end_turn(self, end: int) -> None:
        turn, self._turn = self._turn, None
        assert turn is not None
        waveform = self._since(turn.start, end)
        self._buffer = self._since(end)
        if turn.partial is not None:
            turn.partial.cancel()
        await self._say("input_audio_buffer.committed", item_id=turn.item_id, previous_item_id=self._last_item)
        self._last_item = turn.item_id
        task = asyncio.create_task(self._finally(turn, waveform))
        self._finals.add(task)
        task.add_done_callback(self._finals.discard)

    async def _finally(self, turn: _Turn, waveform: Waveform) -> None:
        """Transcribe a whole turn."""
        try:
            texts = ["".join(s.text for s in h.segments) async for h in self._recogniser.listen(waveform, self._ask())]
        except Exception as error:
            _log.error("a turn failed", exc_info=error)
            told = {
                "type": "server_error",
                "code": "transcription_failed",
                "message": "The turn could not be transcribed.",
                "param": None,
            }
            await self._say_of(turn, "failed", error=told)
            return
        text = "".join(texts).strip()
        delta = turn.agreement.end(text)
        if delta:
            await self._say_of(turn, "delta", delta=delta)
        await self._say_of(turn, "completed", transcript=text, usage=usage(duration_s(waveform)))

    def _ask(self) -> Ask:
        wanted = self._settings.audio.input.transcription
        return Ask(wanted.model or self._default, wanted.language, Decoding(previous=wanted.prompt), self._turns)

    def _described(self) -> dict[str, Any]:
        session = self._settings.model_dump(mode="json")
        session["audio"]["input"]["format"]["rate"] = self._settings.audio.input.format.rate_hz
        session["audio"]["input"]["transcription"]["model"] = self._ask().model
        return {"id": self._id, "object": "realtime.transcription_session", **session}

    async def _say_of(self, turn: _Turn, kind: str, **fields: Any) -> None:
        name = f"conversation.item.input_audio_transcription.{kind}"
        await self._say(name, item_id=turn.item_id, content_index=0, **fields)

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._send({"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields})


def _item_id() -> str:
    return f"item_{uuid.uuid4().hex}"


def _ms(sample: int) -> int:
    return round(1000 * sample / SAMPLE_RATE_HZ)
