"""Transcription in this process: what `askd.load` returns and `askd transcribe` uses."""

import asyncio
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from askd_ray.audio.decode import AudioError, DecodedAudio, Waveform, decode, duration_s
from askd_ray.errors import AskdError
from askd_ray.models.transcript import Decoding
from askd_ray.serve.engine import ServedModels, allocate_hardware, load
from askd_ray.serve.transcription import Segment, Transcription
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService
from askd_ray.text.languages import language_code
from askd_ray.torch_setup import Device, usable_device


class Transcriber:
    """A student in this process. It transcribes as the service does: speech detection, chunks, and a second decoding
    of doubtful transcripts.

    ``bundle`` is a folder that `askd export` wrote, or a CTranslate2 Whisper folder. ``threads`` = 0 measures how many
    threads speed up the model.

    Raises :class:`AskdError` when the folder holds no model, and for ``device`` "cuda" without a GPU.
    """

    def __init__(self, bundle: Path | str, device: Device = "cpu", threads: int = 0):
        usable_device(device == "cuda")
        hardware = allocate_hardware(Path(bundle), device, threads)
        loaded = load(Path(bundle), hardware=hardware)
        models = ServedModels(hardware)
        models.put(loaded)
        self.languages = loaded.model.languages
        self._model = loaded.model.name
        self._service = TranscriptionService(models, _InProcessDecoder())
        # One event loop for all calls: the queue counts a batch that outlives its call, such as that of a silent clip,
        # when the batch ends. A thread of its own: in a notebook the caller's already runs an event loop.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="transcriber", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def transcribe(
        self, audio: Path | str | bytes | Waveform, language: str | None = None, prompt: str = "", words: bool = True
    ) -> Transcription:
        """Transcribe an audio file (a path, or its bytes) or a waveform (16 kHz, mono, float32).

        ``language`` is a code, a tag or a name; None detects it. ``prompt`` is text that comes before the transcript.
        ``words`` also gives times and probabilities of words, and ``no_speech_prob``; it takes a second pass of the
        decoder.

        Raises :class:`AskdError` for a file that is missing or cannot be decoded, an unknown language, and a prompt
        that is too long.
        """
        language = None if language is None else language_code(language)
        decoding = Decoding(prompt=prompt, confidence=words, no_speech=words)
        work = self._transcribe(audio, TranscribeOptions(self._model, language, decoding))
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _transcribe(self, audio: Path | str | bytes | Waveform, options: TranscribeOptions) -> Transcription:
        if isinstance(audio, np.ndarray):
            return await self._transcribe_waveform(_checked(audio), options)
        name = "the audio" if isinstance(audio, bytes) else str(audio)
        try:
            async with self._service.loaded(audio if isinstance(audio, bytes) else _read(Path(audio))) as decoded:
                return await self._transcribe_waveform(decoded.waveform, options)
        except AudioError as error:
            raise AskdError(f"{name}: {error}") from None

    async def _transcribe_waveform(self, waveform: Waveform, options: TranscribeOptions) -> Transcription:
        segments: list[Segment] = []
        language = options.language or "en"
        async for chunk in self._service.transcribe(waveform, options):
            segments += chunk.segments
            language = chunk.result.transcript.language
        return Transcription(tuple(segments), language, duration_s(waveform))


def transcribe_files(
    bundle: Path, files: Sequence[Path], language: str = "en", device: Device = "cpu"
) -> Iterator[tuple[Path, str]]:
    """Yield each audio file with its text.

    Raises :class:`AskdError` as :class:`Transcriber` does. Missing files and unknown languages raise before the model
    is loaded.
    """
    language = language_code(language)
    for file in files:
        if not file.is_file():
            raise AskdError(f"audio file {file} does not exist")
    transcriber = Transcriber(bundle, device)
    for file in files:
        yield file, transcriber.transcribe(file, language, words=False).text


class _InProcessDecoder:
    """Decodes trusted files in this process, of any length, and refuses a file of which anything is missing."""

    async def decode(self, audio: bytes, max_s: float, partial: bool = False) -> DecodedAudio:
        return DecodedAudio(decode(audio))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise AskdError(f"audio file {path} does not exist")
    return path.read_bytes()


def _checked(waveform: Waveform) -> Waveform:
    if waveform.ndim != 1 or waveform.dtype != np.float32:
        raise AskdError(
            f"a waveform of shape {waveform.shape} and type {waveform.dtype}: one channel of float32 at 16 kHz is "
            "expected"
        )
    return waveform
