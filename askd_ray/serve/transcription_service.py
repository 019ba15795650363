"""From an audio file to its text, whoever hears the stretches: an engine in this process, or replicas on a cluster."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from askd_ray.audio.chunking import MAX_CHUNK_S, halves, split_into_chunks
from askd_ray.audio.decode import DecodedAudio, Waveform, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Span, Vad, VadOptions
from askd_ray.errors import AskdError
from askd_ray.models.engine import Decoding, Transcript
from askd_ray.serve.decode_fallback import stops_early
from askd_ray.serve.sandbox import Sandbox
from askd_ray.serve.transcription import Segment, segments_of

MAX_AUDIO_S = 7200.0  # 460 MB as a waveform; a file of 25 MiB rarely holds more speech
MAX_HELD_S = 4 * 3600.0  # of audio in memory, over all requests: 920 MB
_AT_ONCE = 4  # stretches of one file that are in line or being decoded


@dataclass(frozen=True)
class TranscribeOptions:
    """How a file is to be transcribed. ``language`` None: it is found out from the first stretch with speech."""

    model: str
    language: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    turns: VadOptions = field(default_factory=VadOptions)


@dataclass(frozen=True)
class Model:
    """A model that is served: what clients call it, which export of it, and the languages that it knows."""

    name: str
    version: str
    created_s: int
    languages: tuple[str, ...]


@dataclass(frozen=True)
class ChunkResult:
    """What was heard in a stretch; ``batch`` stretches were decoded together, in ``worked_s`` seconds."""

    transcript: Transcript
    version: str
    batch: int
    worked_s: float


class BusyError(Exception):
    """There is no room for another request now."""


class UnknownModelError(AskdError):
    """A model that is not served."""

    def __init__(self, name: str, served: Sequence[str]):
        super().__init__(f"The model {name!r} does not exist: {', '.join(map(repr, served)) or 'none'} is served here.")
        self.name, self.served = name, served

    def __reduce__(self) -> tuple[type, tuple[str, Sequence[str]]]:
        return type(self), (self.name, self.served)


class SpeechEngine(Protocol):
    """What hears stretches of up to 30 s."""

    async def models(self) -> Sequence[Model]:
        """Return what is served; the first is the default."""
        ...

    async def hear(self, stretch: Waveform, ask: TranscribeOptions, owner: str) -> ChunkResult:
        """Return what is said in a stretch; those of one ``owner`` (a request) share its turn.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know.
        """
        ...

    async def check(self) -> None:
        """Run every model on a second of silence; raises whatever goes wrong."""
        ...


@dataclass(frozen=True)
class TranscribedChunk:
    """What is said in a stretch of a file."""

    segments: tuple[Segment, ...]
    hearing: ChunkResult


class TranscriptionService:
    """Transcribes audio files: decoding in a sandbox, speech detection, stretches, and their texts in order."""

    def __init__(self, ears: SpeechEngine, sandbox: Sandbox, max_audio_s: float = MAX_AUDIO_S):
        self.ears = ears
        self.vad = Vad()
        self._sandbox = sandbox
        self._max_audio_s = max_audio_s
        self._held_s = 0.0

    @contextlib.asynccontextmanager
    async def loaded(self, audio: bytes, partial: bool = False) -> AsyncGenerator[DecodedAudio]:
        """Hold the waveform of an audio file for as long as the block runs; with ``partial``, what is left of it.

        Raises :class:`~askd_ray.audio.decode.AudioError` when it cannot be used, and :class:`BusyError` when
        others hold too much.
        """
        decoded = await self._sandbox.decode(audio, self._max_audio_s, partial)
        seconds = duration_s(decoded.waveform)
        if self._held_s and self._held_s + seconds > MAX_HELD_S:
            raise BusyError
        self._held_s += seconds
        try:
            yield decoded
        finally:
            self._held_s -= seconds

    async def listen(self, waveform: Waveform, ask: TranscribeOptions) -> AsyncGenerator[TranscribedChunk]:
        """Yield what is said in a waveform, stretch by stretch.

        Whoever stops listening takes the other stretches out of the line.
        """
        owner = uuid.uuid4().hex
        asked: list[asyncio.Task[list[tuple[Span, ChunkResult]]]] = []
        whole: asyncio.Task[ChunkResult] | None = None
        if len(waveform) <= samples_of(
            MAX_CHUNK_S
        ):  # one stretch, if anybody speaks: it is heard while that is found out
            whole = asyncio.ensure_future(self.ears.hear(waveform, ask, owner))
        try:
            speech = await asyncio.to_thread(self.vad.speech, waveform, ask.turns)
            left = split_into_chunks(waveform, speech)
            while left or asked:
                # Where the language is not known yet, the first stretch says it for all.
                while left and len(asked) < (_AT_ONCE if ask.language else 1):
                    asked.append(asyncio.create_task(self._hear(waveform, left.pop(0), speech, ask, owner, whole)))
                for span, hearing in await asked[0]:
                    ask = replace(ask, language=hearing.transcript.language)
                    yield TranscribedChunk(
                        segments_of(hearing.transcript, span, speech, ask.decoding.temperature), hearing
                    )
                asked.pop(0)
        finally:
            tasks: list[asyncio.Task[Any]] = [*asked, *([] if whole is None else [whole])]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(
        self,
        waveform: Waveform,
        stretch: Span,
        speech: Sequence[Span],
        ask: TranscribeOptions,
        owner: str,
        heard: Awaitable[ChunkResult] | None = None,
    ) -> list[tuple[Span, ChunkResult]]:
        """Return what is said in a stretch; where words must be missing, what is said in each half, if that is more.

        ``heard`` is what is said in the whole stretch, where that was asked before.
        """
        hearing = await (heard or self.ears.hear(waveform[stretch.start : stretch.end], ask, owner))
        within = [s for s in speech if s.start < stretch.end and s.end > stretch.start]
        speech_s = sum(min(s.end, stretch.end) - max(s.start, stretch.start) for s in within) / SAMPLE_RATE_HZ
        if not stops_early(hearing.transcript, speech_s):
            return [(stretch, hearing)]
        ask = replace(ask, language=hearing.transcript.language)
        parts: list[tuple[Span, ChunkResult]] = []
        for half in halves(waveform, stretch, within):
            parts += await self._hear(waveform, half, speech, ask, owner)
        n_tokens = sum(len(its.transcript.token_ids) for _, its in parts)
        return parts if n_tokens > len(hearing.transcript.token_ids) else [(stretch, hearing)]
