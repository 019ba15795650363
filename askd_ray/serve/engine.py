"""The speech engine of one process, without Ray: it loads models and transcribes chunks in fair, batched order."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.errors import AskdError
from askd_ray.files import local_path
from askd_ray.models.bundle import BUNDLE_FILE, ComputeType, open_engine, read_bundle
from askd_ray.models.decode_fallback import PathReader, WindowedEngine, transcribe_with_fallback
from askd_ray.models.engine import MAX_BATCH_S
from askd_ray.models.threads import allocate_threads
from askd_ray.models.transcript import Decoding, UnitPath
from askd_ray.serve.scheduler import Scheduler
from askd_ray.serve.transcription_service import ChunkResult, Model, TranscribeOptions, UnknownModelError
from askd_ray.torch_setup import Device, n_cores

_CPU_BATCH_S = 30.0  # a short clip waits for the batch in progress, which takes a CPU seconds
_GPU_WORKERS = 2  # while a GPU computes one batch, the CPU computes the log-mel of the next


@dataclass(frozen=True)
class Hardware:
    """What the models of a process run on: ``workers`` concurrent calls with ``threads`` threads each.

    A call takes a batch of up to ``batch_s`` seconds of windows. ``compute_type`` None is the default of the device.
    """

    device: Device = "cpu"
    threads: int = 1
    workers: int = 1
    batch_s: float = _CPU_BATCH_S
    compute_type: ComputeType | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, with its name and version."""

    model: Model
    engine: WindowedEngine


@dataclass(frozen=True)
class _Transcription:
    """What all chunks of a batch share; ``window_samples`` is None for engines that decode any windows together."""

    loaded: LoadedModel
    language: str | None
    decoding: Decoding
    window_samples: int | None

    def run(self, chunks: Sequence[Waveform]) -> list[ChunkResult]:
        begun = time.monotonic()
        transcripts = transcribe_with_fallback(self.loaded.engine, chunks, self.language, self.decoding)
        worked_s = time.monotonic() - begun
        return [ChunkResult(transcript, self.loaded.model.version, len(chunks), worked_s) for transcript in transcripts]


@dataclass(frozen=True)
class _PathReading:
    """What all pieces of a batch share."""

    reader: PathReader
    language: str | None
    window_samples: int

    def run(self, pieces: Sequence[Waveform]) -> list[UnitPath]:
        return self.reader.read_paths(pieces, self.language)


class ServedModels:
    """The models that this process serves, and the scheduler that shares them among requests; it implements
    :class:`~askd_ray.serve.transcription_service.SpeechEngine`.

    A model may be replaced while it serves (:meth:`put`). A chunk that waits in the queue is transcribed by the model
    that was loaded when the chunk arrived.
    """

    def __init__(self, hardware: Hardware = Hardware()):
        self.last_chunk_at = -math.inf  # when the last chunk was transcribed, on the monotonic clock
        self._loaded: dict[str, LoadedModel] = {}
        limits = hardware.batch_s, hardware.workers
        self._scheduler = Scheduler[Waveform, _Transcription | _PathReading, Any](_run, *limits)

    def put(self, loaded: LoadedModel) -> None:
        """Serve a model from now on; it replaces the model with the same name."""
        self._loaded = self._loaded | {loaded.model.name: loaded}

    async def models(self) -> Sequence[Model]:
        """Return the served models; the first is the default."""
        return [loaded.model for loaded in self._loaded.values()]

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        """Transcribe a chunk.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know.
        """
        loaded = self._find(options.model)
        window = loaded.engine.window_samples(chunk)
        decoding = replace(options.decoding, prompt=loaded.engine.fit_prompt(options.decoding.prompt))
        shared = None if loaded.engine.mixes_windows else window
        return await self._run(chunk, _Transcription(loaded, options.language, decoding, shared), window, owner)

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        """Return the path of units through a piece of audio.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know, and for a
        model with a decoder.
        """
        loaded = self._find(options.model)
        reader, window = loaded.engine.path_reader, loaded.engine.window_samples(piece)
        if reader is None:
            raise AskdError(f"model {options.model!r} has a decoder: it writes texts, and no paths of units")
        return await self._run(piece, _PathReading(reader, options.language, window), window, owner)

    async def check(self) -> None:
        """Transcribe one second of silence with each model; raises what the model raises."""
        silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
        for name in self._loaded:
            await self.transcribe_chunk(silence, TranscribeOptions(name, "en"), "check")

    def _find(self, name: str) -> LoadedModel:
        loaded = self._loaded.get(name)
        if loaded is None:
            raise UnknownModelError(name, list(self._loaded))
        return loaded

    async def _run(self, waveform: Waveform, key: _Transcription | _PathReading, window: int, owner: str) -> Any:
        result = await self._scheduler.run(waveform, key, window / SAMPLE_RATE_HZ, owner)
        self.last_chunk_at = time.monotonic()
        return result


def _run(key: _Transcription | _PathReading, waveforms: Sequence[Waveform]) -> Sequence[Any]:
    return key.run(waveforms)


def allocate_hardware(path: Path, device: Device = "cpu", threads: int = 0) -> Hardware:
    """Divide the cores among concurrent calls of ``threads`` threads each. 0 measures how many threads speed up the
    model in the folder (:func:`~askd_ray.models.threads.allocate_threads`).

    A GPU gets the largest batches that the engine takes, and two calls at a time.
    """
    if device == "cuda":
        return Hardware(device, workers=_GPU_WORKERS, batch_s=MAX_BATCH_S[device])
    with contextlib.suppress(AskdError):  # load() reports what is wrong with the model
        threads = threads or allocate_threads(read_bundle(path), n_cores())
    threads = threads or 1
    return Hardware(device, threads, max(1, n_cores() // threads))


def load(path: Path, name: str | None = None, hardware: Hardware = Hardware()) -> LoadedModel:
    """Load a bundle or a plain CTranslate2 Whisper folder, and warm it up.

    Raises :class:`AskdError` when the folder holds no model.
    """
    info = read_bundle(path, hardware.device, hardware.compute_type)
    engine = open_engine(info, hardware.device, hardware.threads, workers=hardware.workers)
    engine.transcribe([np.zeros(SAMPLE_RATE_HZ, np.float32)], "en", Decoding(confidence=True))
    bundle = local_path(path).resolve() if (local_path(path) / BUNDLE_FILE).is_file() else None
    name, created_s = name or info.name, int(time.time())
    model = Model(name, info.version, created_s, engine.languages, engine.path_reader is not None, bundle)
    return LoadedModel(model, engine)
