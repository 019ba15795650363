"""One client's session of live captions, event by event; it knows no WebSocket.

Contract: the events of a session of the type ``transcription`` in
https://platform.openai.com/docs/api-reference/realtime. Every sample that a client sends goes into one item, or is
cleared, or is silence that turn detection skips; ``committed`` and ``cleared`` say which part of the audio they hold.
"""

import asyncio
import base64
import binascii
import logging
import uuid
from typing import Any, Literal, cast

import numpy as np

from askd_ray.audio.chunking import MIN_CHUNK_S, SEARCH_S, quietest
from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import VadOptions
from askd_ray.models.engine import Decoding
from askd_ray.serve.live.audio import LiveAudio, TurnDetector
from askd_ray.serve.live.buffer import AudioBuffer
from askd_ray.serve.live.events import EventError, EventSender, Send, ServiceError, quoted
from askd_ray.serve.live.settings import SessionSettings, Transcribing
from askd_ray.serve.live.turns import MIN_PARTIAL_S, Turn, TurnTranscriber
from askd_ray.serve.live.update import Update
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService

MAX_TURN_S = 20.0  # a longer turn is committed up to its last quiet moment
MAX_BUFFER_S = 120.0  # the same, without turn detection
MIN_COMMIT_S = 0.1  # as OpenAI's: less is no utterance, and goes on waiting
_ONSET_S = 0.5  # kept of a silence besides the padding: speech is found a little after it begins
_log = logging.getLogger(__name__)
CommitReason = Literal["client", "speech_stopped", "max_length", "session_end"]


class Session:
    """One client's session: takes events, and sends events. ``default_model`` transcribes unless an update says so."""

    def __init__(self, recogniser: TranscriptionService, send: Send, default_model: str):
        self._recogniser, self._default = recogniser, default_model
        self._id = f"sess_{uuid.uuid4().hex}"
        self._events = EventSender(send)
        self._transcriber = TurnTranscriber(recogniser, self._events)
        self._settings = SessionSettings()
        self._audio = LiveAudio()
        self._buffer = AudioBuffer()
        self._turn: Turn | None = None
        self._last_item: str | None = None
        self._detector: TurnDetector | None = None
        self._detect()

    async def begin(self) -> None:
        """Tell the client that the session is there."""
        await self._events.say("session.created", session=self._described())

    async def handle(self, event: object) -> None:
        """Carry out an event of the client's; a mistake is answered and changes nothing."""
        fields = cast(dict[str, Any], event) if isinstance(event, dict) else {}
        try:
            await self._carry_out(fields)
        except EventError as error:
            await self._events.refuse(error, fields.get("event_id"))
        except Exception as error:
            _log.error("an event failed", exc_info=error)
            failure = ServiceError("The event could not be carried out.", "server_error")
            await self._events.refuse(failure, fields.get("event_id"))

    async def finish(self, timeout_s: float) -> None:
        """Commit what waits, and wait some seconds for the transcripts: the service is about to end the session."""
        self._buffer.append(self._audio.flush())
        if self._buffer.n_samples and (self._turn is not None or self._detector is None):
            await self._commit(self._buffer.end, "session_end")
        await self._transcriber.drain(timeout_s)

    def close(self) -> None:
        """Stop all work."""
        self._drop_turn()
        self._transcriber.close()

    async def _carry_out(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        match kind:
            case "session.update" | "transcription_session.update":
                await self._update(event.get("session"), beta=kind == "transcription_session.update")
            case "input_audio_buffer.append":
                await self._take(self._audio.push(_decoded(event.get("audio"))))
            case "input_audio_buffer.commit":
                await self._commit_for_client()
            case "input_audio_buffer.clear":
                await self._clear()
            case _:
                known = "session.update and input_audio_buffer.append, .commit and .clear are allowed"
                told = f"event type {quoted(kind)} is not known" if isinstance(kind, str) else "an event has a type"
                raise EventError(f"{told}: {known}", "unknown_event", "type")

    async def _update(self, session: object, beta: bool) -> None:
        update = Update(self._settings, session)
        update.settings.check(await self._recogniser.ears.models(), self._default)
        before, after = self._settings, update.settings
        if after.format != before.format:
            await self._take(self._audio.flush())
            self._audio = LiveAudio(after.format.type, after.format.rate_hz)
        self._settings = after
        if after.transcription is None and self._turn is not None:
            self._turn.drop_partial()
        name = "transcription_session.updated" if beta else "session.updated"
        await self._events.say(name, session=self._described(beta), ignored=update.ignored)
        if after.turn_detection != before.turn_detection:
            await self._change_turn_detection()

    async def _change_turn_detection(self) -> None:
        """Detect turns as the settings say from here on. What waits stays: in its turn, or in search of one."""
        wanted = self._settings.turn_detection
        if wanted is not None and self._detector is not None:
            self._detector.options = wanted.turns()
            return
        self._detect(speaking=self._turn is not None)
        if wanted is None:
            return
        if self._turn is not None:
            await self._cut_long_turn()
            return
        # Nobody has listened to what waits: it is taken as if it came in now.
        waiting = self._buffer.rewind()
        self._offset = self._buffer.end
        await self._take(waiting)

    def _detect(self, speaking: bool = False) -> None:
        """Begin to detect turns with what comes in next, where the settings say so."""
        wanted = self._settings.turn_detection
        self._detector = None if wanted is None else TurnDetector(self._recogniser.vad, wanted.turns(), speaking)
        self._offset = self._buffer.end  # of the session, at which the detector begins

    async def _take(self, waveform: Waveform) -> None:
        """Take in audio at 16 kHz."""
        if self._detector is None:
            self._buffer.append(waveform)
            await self._cut_long_turn()
            return
        for piece in np.array_split(waveform, max(1, len(waveform) // samples_of(MIN_PARTIAL_S))):
            await self._follow(piece, self._detector)
            await asyncio.sleep(0)  # two minutes may come at once: other sessions have their turn between

    async def _follow(self, waveform: Waveform, detector: TurnDetector) -> None:
        """Go along with the turns in what came in."""
        self._buffer.append(waveform)
        for event in detector.push(waveform):
            sample = self._offset + event.sample
            if event.started:
                self._buffer.take_until(sample)  # silence
                turn = self._turn = Turn()
                start_ms = _ms(self._buffer.start)
                await self._events.say(
                    "input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=turn.item_id
                )
            elif self._turn is not None:
                await self._events.say(
                    "input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=self._turn.item_id
                )
                await self._commit(sample, "speech_stopped")
        if self._turn is None:  # nobody speaks: only what the next turn may reach back to is kept
            self._buffer.take_until(self._buffer.end - samples_of(detector.options.padding_s + _ONSET_S))
            return
        await self._cut_long_turn()
        if self._settings.transcription is not None and self._turn.is_worth_a_partial(self._buffer.n_samples):
            self._transcriber.transcribe_partly(self._turn, self._buffer.waveform(), self._ask())

    async def _cut_long_turn(self) -> None:
        """Commit what is too long to wait up to its last quiet moment; who speaks goes on speaking."""
        most = samples_of(MAX_BUFFER_S if self._detector is None else MAX_TURN_S)
        while self._buffer.n_samples >= most:
            last = most - samples_of(MIN_CHUNK_S)
            quiet = quietest(self._buffer.waveform()[:most], max(0, last - samples_of(SEARCH_S)), last)
            await self._commit(self._buffer.start + quiet, "max_length")
            self._turn = None if self._detector is None else Turn()

    async def _commit_for_client(self) -> None:
        held = self._audio.flush()
        if self._turn is None and self._buffer.n_samples + len(held) < samples_of(MIN_COMMIT_S):
            await self._take(held)
            message = f"input_audio_buffer.commit: at least {1000 * MIN_COMMIT_S:g} ms of audio are needed"
            raise EventError(message, "input_audio_buffer_commit_empty")
        self._buffer.append(held)
        await self._commit(self._buffer.end, "client")
        self._detect()

    async def _commit(self, end: int, reason: CommitReason) -> None:
        """Make an item of what waits before a sample of the session, and have it transcribed."""
        turn, self._turn = self._turn or Turn(), None
        turn.drop_partial()
        start, waveform = self._buffer.start, self._buffer.take_until(end)
        before, self._last_item = self._last_item, turn.item_id
        span = {"audio_start_ms": _ms(start), "audio_end_ms": _ms(self._buffer.start)}
        await self._events.say(
            "input_audio_buffer.committed", item_id=turn.item_id, previous_item_id=before, reason=reason, **span
        )
        if self._settings.transcription is not None:
            self._transcriber.transcribe(turn, waveform, self._ask(self._settings.logprobs))

    async def _clear(self) -> None:
        self._buffer.append(self._audio.flush())
        self._audio = LiveAudio(self._settings.format.type, self._settings.format.rate_hz)  # half a sample goes too
        self._drop_turn()
        start = self._buffer.start
        self._buffer.take_until(self._buffer.end)
        self._detect()
        span = {"audio_start_ms": _ms(start), "audio_end_ms": _ms(self._buffer.end)}
        await self._events.say("input_audio_buffer.cleared", **span)

    def _drop_turn(self) -> None:
        if self._turn is not None:
            self._turn.drop_partial()
            self._turn = None

    def _ask(self, confidence: bool = False) -> TranscribeOptions:
        wanted, detection = self._settings.transcription or Transcribing(), self._settings.turn_detection
        turns = VadOptions() if detection is None else detection.turns()
        decoding = Decoding(prompt=wanted.prompt, confidence=confidence)
        return TranscribeOptions(wanted.model or self._default, wanted.language, decoding, turns)

    def _described(self, beta: bool = False) -> dict[str, Any]:
        if beta:
            return {"id": self._id, **self._settings.as_beta_session(self._default)}
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            **self._settings.as_session(self._default),
        }


def _decoded(audio: object) -> bytes:
    """Return the bytes of base64.

    Raises :class:`EventError` for anything else.
    """
    try:
        return base64.b64decode(cast(str, audio), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise EventError("input_audio_buffer.append: audio is no base64", param="audio") from None


def _ms(sample: int) -> int:
    return round(1000 * sample / SAMPLE_RATE_HZ)
