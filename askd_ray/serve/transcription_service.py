"""Transcribe an audio file with any :class:`SpeechEngine`: in this process, or replicas on a cluster."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from askd_ray.audio.chunking import split_into_chunks
from askd_ray.audio.decode import DecodedAudio, Waveform, duration_s
from askd_ray.audio.vad import Span, Vad, VadOptions
from askd_ray.errors import AskdError
from askd_ray.models.served import halves_are_better, halves_with_missing_words, is_one_chunk
from askd_ray.models.transcript import Decoding, Transcript, UnitPath
from askd_ray.serve.transcription import Segment, segments_of

MAX_AUDIO_S = 7200.0  # 460 MB as a waveform; a file of 25 MiB rarely contains more speech
MAX_HELD_S = 4 * 3600.0  # of audio in memory, over all requests: 920 MB
_MAX_PENDING_CHUNKS = 4  # of one file, waiting or being decoded


@dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe a file. ``language`` None: detect it in the first chunk with speech."""

    model: str
    language: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    vad_options: VadOptions = field(default_factory=VadOptions)


@dataclass(frozen=True)
class Model:
    """A served model: its name for clients, the version of its bundle, and the languages that it knows.

    ``reads_paths``: :meth:`SpeechEngine.read_path` reads it, since it has no decoder. ``bundle`` is its folder, on a
    disk that the ingress can read too, or None.
    """

    name: str
    version: str
    created_s: int
    languages: tuple[str, ...]
    reads_paths: bool = False
    bundle: Path | None = None


@dataclass(frozen=True)
class ChunkResult:
    """The transcript of a chunk; ``batch`` chunks were decoded in one call of ``worked_s`` seconds."""

    transcript: Transcript
    version: str
    batch: int
    worked_s: float


class BusyError(Exception):
    """The service cannot accept another request now."""


class UnknownModelError(AskdError):
    """A model that is not served."""

    def __init__(self, name: str, served: Sequence[str]):
        super().__init__(f"The model {name!r} does not exist: {', '.join(map(repr, served)) or 'none'} is served here.")
        self.name, self.served = name, served

    def __reduce__(self) -> tuple[type, tuple[str, Sequence[str]]]:
        return type(self), (self.name, self.served)


class SpeechEngine(Protocol):
    """Transcribes chunks of up to 30 s."""

    async def models(self) -> Sequence[Model]:
        """Return the served models; the first is the default."""
        ...

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk; the chunks of one ``owner`` (a request) share its place in the fair queue.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know.
        """
        ...

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        """Return the path of units through a piece of audio; ``owner`` is that of :meth:`transcribe_chunk`.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know, and for a
        model with a decoder.
        """
        ...

    async def check(self) -> None:
        """Transcribe one second of silence with each model; raises what the model raises."""
        ...


class AudioDecoder(Protocol):
    """What makes a waveform of an audio file: a sandbox, or this process for files that are trusted."""

    async def decode(self, audio: bytes, max_s: float, partial: bool = False) -> DecodedAudio:
        """Return the waveform of an audio file; with ``partial``, accept missing audio.

        Raises :class:`~askd_ray.audio.decode.AudioError` when the file cannot be decoded or is too long.
        """
        ...


@dataclass(frozen=True)
class TranscribedChunk:
    """The transcript of a chunk, as segments with times in the file."""

    segments: tuple[Segment, ...]
    result: ChunkResult


class TranscriptionService:
    """Transcribes audio files: decodes them, detects speech, and transcribes chunks in order.

    The text of a file is that of :func:`askd_ray.models.served.transcribe_as_served`, which the evaluation uses.
    """

    def __init__(self, engine: SpeechEngine, decoder: AudioDecoder, max_audio_s: float = MAX_AUDIO_S):
        self.engine = engine
        self.vad = Vad()
        self._decoder = decoder
        self._max_audio_s = max_audio_s
        self._held_s = 0.0

    @contextlib.asynccontextmanager
    async def loaded(self, audio: bytes, partial: bool = False) -> AsyncGenerator[DecodedAudio]:
        """Decode an audio file and hold its waveform while the block runs; with ``partial``, accept missing audio.

        Raises :class:`~askd_ray.audio.decode.AudioError` when the file cannot be decoded, and :class:`BusyError` when
        the waveforms of other requests take too much memory.
        """
        decoded = await self._decoder.decode(audio, self._max_audio_s, partial)
        seconds = duration_s(decoded.waveform)
        if self._held_s and self._held_s + seconds > MAX_HELD_S:
            raise BusyError
        self._held_s += seconds
        try:
            yield decoded
        finally:
            self._held_s -= seconds

    async def transcribe(self, waveform: Waveform, options: TranscribeOptions) -> AsyncGenerator[TranscribedChunk]:
        """Transcribe a waveform; yield one chunk after another.

        Closing the generator removes the other chunks from the queue.
        """
        owner = uuid.uuid4().hex
        pending: list[asyncio.Task[list[tuple[Span, ChunkResult]]]] = []
        whole: asyncio.Task[ChunkResult] | None = None
        if is_one_chunk(waveform):  # transcribe it while the VAD runs
            whole = asyncio.ensure_future(self.engine.transcribe_chunk(waveform, options, owner))
        try:
            await asyncio.sleep(0)  # the VAD takes the interpreter's lock: first send the chunk to the engine
            speech = await asyncio.to_thread(self.vad.speech, waveform, options.vad_options)
            chunks = split_into_chunks(waveform, speech)
            while chunks or pending:
                # While the language is unknown, only the first chunk is sent: it decides the language of the file.
                while chunks and len(pending) < (_MAX_PENDING_CHUNKS if options.language else 1):
                    work = self._transcribe_chunk(waveform, chunks.pop(0), speech, options, owner, whole)
                    pending.append(asyncio.create_task(work))
                for span, result in await pending[0]:
                    options = replace(options, language=result.transcript.language)
                    segments = segments_of(result.transcript, span, speech, options.decoding.temperature)
                    yield TranscribedChunk(segments, result)
                pending.pop(0)
        finally:
            tasks: list[asyncio.Task[Any]] = [*pending, *([] if whole is None else [whole])]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _transcribe_chunk(
        self,
        waveform: Waveform,
        chunk: Span,
        speech: Sequence[Span],
        options: TranscribeOptions,
        owner: str,
        started: Awaitable[ChunkResult] | None = None,
    ) -> list[tuple[Span, ChunkResult]]:
        """Transcribe a chunk. Where words must be missing, also transcribe its halves, and keep the longer result.

        ``started`` is the transcription of the whole chunk, where it already runs.
        """
        result = await (started or self.engine.transcribe_chunk(waveform[chunk.start : chunk.end], options, owner))
        options = replace(options, language=result.transcript.language)
        parts: list[tuple[Span, ChunkResult]] = []
        for half in halves_with_missing_words(waveform, chunk, speech, result.transcript):
            parts += await self._transcribe_chunk(waveform, half, speech, options, owner)
        better = halves_are_better([part.transcript for _, part in parts], result.transcript)
        return parts if better else [(chunk, result)]
