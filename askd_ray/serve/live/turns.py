"""The turns of a session, and their transcripts: partial ones while somebody speaks, and the final one."""

import asyncio
import logging
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import samples_of
from askd_ray.models.engine import Transcript
from askd_ray.serve.live.agreement import Agreement
from askd_ray.serve.live.events import EventSender
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService

MIN_PARTIAL_S = 0.2  # of new audio, before another partial result is worth it
_log = logging.getLogger(__name__)


@dataclass
class Turn:
    """An utterance that is not committed yet: the item it will be, and what was shown of its text."""

    item_id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex}")
    agreement: Agreement = field(default_factory=Agreement)
    partial: "asyncio.Task[None] | None" = None
    n_transcribed: int = 0  # samples of it, when it was transcribed last

    def is_worth_a_partial(self, n_samples: int) -> bool:
        """Whether nobody transcribes it now, and enough is new of its ``n_samples``."""
        return self.partial is None and n_samples - self.n_transcribed >= samples_of(MIN_PARTIAL_S)

    def drop_partial(self) -> None:
        """Give up a partial result that has not come yet."""
        if self.partial is not None:
            self.partial.cancel()
            self.partial = None


class TurnTranscriber:
    """Has turns transcribed, and sends the events about their text."""

    def __init__(self, recogniser: TranscriptionService, events: EventSender):
        self._recogniser, self._events = recogniser, events
        self._finals: set[asyncio.Task[None]] = set()

    def transcribe_partly(self, turn: Turn, waveform: Waveform, ask: TranscribeOptions) -> None:
        """Have the turn so far transcribed."""
        turn.n_transcribed = len(waveform)
        turn.partial = asyncio.create_task(self._partial(turn, waveform, ask))

    def transcribe(self, turn: Turn, waveform: Waveform, ask: TranscribeOptions) -> None:
        """Have a whole turn transcribed; with the tokens' probabilities where ``ask`` wants its confidence."""
        task = asyncio.create_task(self._final(turn, waveform, ask))
        self._finals.add(task)
        task.add_done_callback(self._finals.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait until the transcripts of all turns have been sent, for some seconds."""
        if self._finals:
            await asyncio.wait(self._finals, timeout=timeout_s)

    def close(self) -> None:
        """Give up all transcripts."""
        for task in self._finals:
            task.cancel()

    async def _partial(self, turn: Turn, waveform: Waveform, ask: TranscribeOptions) -> None:
        try:
            hearing = await self._recogniser.ears.hear(waveform, ask, turn.item_id)
            delta = turn.agreement.update(hearing.transcript.text)
            if delta:
                await self._events.say_of_item(turn.item_id, "delta", delta=delta)
        except Exception as error:  # the client hears of it if the final result fails too
            _log.warning("a partial result failed: %s", type(error).__name__)
        finally:
            if turn.partial is asyncio.current_task():
                turn.partial = None

    async def _final(self, turn: Turn, waveform: Waveform, ask: TranscribeOptions) -> None:
        texts: list[str] = []
        logprobs: list[dict[str, Any]] = []
        try:
            async for heard in self._recogniser.listen(waveform, ask):
                texts += (segment.text for segment in heard.segments)
                logprobs += token_logprobs(heard.hearing.transcript)
        except Exception as error:
            _log.error("a turn failed", exc_info=error)
            message = "The turn could not be transcribed."
            body = {"type": "server_error", "code": "transcription_failed", "message": message, "param": None}
            await self._events.say_of_item(turn.item_id, "failed", error=body)
            return
        text = "".join(texts).strip()
        delta = turn.agreement.end(text)
        if delta:
            await self._events.say_of_item(turn.item_id, "delta", delta=delta)
        usage = {"type": "duration", "seconds": duration_s(waveform)}
        extra = {"logprobs": logprobs} if ask.decoding.confidence else {}
        await self._events.say_of_item(turn.item_id, "completed", transcript=text, usage=usage, **extra)


def token_logprobs(transcript: Transcript) -> list[dict[str, Any]]:
    """Return OpenAI's log-probabilities (nats) of a transcript's tokens, where the engine was asked for them."""
    return [
        # JSON has no minus infinity.
        {"token": text, "bytes": list(text.encode("utf-8")), "logprob": round(math.log(max(prob, 1e-30)), 4)}
        for text, prob in zip(transcript.token_texts, transcript.token_probs, strict=True)
    ]
