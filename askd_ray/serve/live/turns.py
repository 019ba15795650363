"""The turns of a session and their transcripts: partial results during the turn, and the final result."""

import asyncio
import logging
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import samples_of
from askd_ray.models.transcript import Transcript
from askd_ray.serve.live.captions import Captions, captions_for
from askd_ray.serve.live.events import EventSender
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService

MIN_PARTIAL_S = 0.2  # of new audio between two partial results
_log = logging.getLogger(__name__)


@dataclass
class Turn:
    """An utterance: the id of its item, and its captions, once a partial result was needed."""

    item_id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex}")
    captions: Captions | None = None
    partial: "asyncio.Task[None] | None" = None
    n_transcribed: int = 0  # its length in samples at the last transcription

    def needs_partial(self, n_samples: int) -> bool:
        """Whether no partial result is in progress, and enough of the ``n_samples`` is new."""
        return self.partial is None and n_samples - self.n_transcribed >= samples_of(MIN_PARTIAL_S)

    def drop_partial(self) -> None:
        """Cancel the partial result in progress."""
        if self.partial is not None:
            self.partial.cancel()
            self.partial = None


class TurnTranscriber:
    """Transcribes turns and sends the events with their text."""

    def __init__(self, service: TranscriptionService, events: EventSender):
        self._service, self._events = service, events
        self._finals: set[asyncio.Task[None]] = set()

    def transcribe_partial(self, turn: Turn, waveform: Waveform, options: TranscribeOptions) -> None:
        """Start to transcribe an unfinished turn."""
        turn.n_transcribed = len(waveform)
        turn.partial = asyncio.create_task(self._partial(turn, waveform, options))

    def transcribe(self, turn: Turn, waveform: Waveform, options: TranscribeOptions) -> None:
        """Start to transcribe a whole turn, with log-probabilities of tokens where ``options`` ask for confidence."""
        task = asyncio.create_task(self._final(turn, waveform, options))
        self._finals.add(task)
        task.add_done_callback(self._finals.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait until the transcripts of all turns are sent, at most ``timeout_s``."""
        if self._finals:
            await asyncio.wait(self._finals, timeout=timeout_s)

    def close(self) -> None:
        """Cancel all transcripts."""
        for task in self._finals:
            task.cancel()

    async def _partial(self, turn: Turn, waveform: Waveform, options: TranscribeOptions) -> None:
        try:
            if turn.captions is None:
                turn.captions = await captions_for(self._service.engine, options.model)
            delta = await turn.captions.read(self._service.engine, waveform, options, turn.item_id)
            if delta:
                await self._events.send_item_event(turn.item_id, "delta", delta=delta)
        except Exception as error:  # not sent to the client: the final result may still succeed
            _log.warning("a partial result failed: %s", type(error).__name__)
        finally:
            if turn.partial is asyncio.current_task():
                turn.partial = None

    async def _final(self, turn: Turn, waveform: Waveform, options: TranscribeOptions) -> None:
        texts: list[str] = []
        logprobs: list[dict[str, Any]] = []
        try:
            async for chunk in self._service.transcribe(waveform, options):
                texts += (segment.text for segment in chunk.segments)
                logprobs += token_logprobs(chunk.result.transcript)
        except Exception as error:
            _log.error("a turn failed", exc_info=error)
            message = "The turn could not be transcribed."
            body = {"type": "server_error", "code": "transcription_failed", "message": message, "param": None}
            await self._events.send_item_event(turn.item_id, "failed", error=body)
            return
        text = "".join(texts).strip()
        delta = text if turn.captions is None else turn.captions.end(text)
        if delta:
            await self._events.send_item_event(turn.item_id, "delta", delta=delta)
        usage = {"type": "duration", "seconds": duration_s(waveform)}
        extra = {"logprobs": logprobs} if options.decoding.confidence else {}
        await self._events.send_item_event(turn.item_id, "completed", transcript=text, usage=usage, **extra)


def token_logprobs(transcript: Transcript) -> list[dict[str, Any]]:
    """Return OpenAI's log-probabilities (nats) of a transcript's tokens, where the engine computed them."""
    return [
        # JSON has no minus infinity.
        {"token": text, "bytes": list(text.encode("utf-8")), "logprob": round(math.log(max(prob, 1e-30)), 4)}
        for text, prob in zip(transcript.token_texts, transcript.token_probs, strict=True)
    ]
