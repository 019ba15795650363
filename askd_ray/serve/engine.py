"""The models of a process, and their turn at it: what hears stretches, without Ray."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.audio.vad import Vad
from askd_ray.errors import AskdError
from askd_ray.models.bundle import open_engine, read_bundle
from askd_ray.models.engine import GREEDY, Decoding, Engine, Transcript
from askd_ray.models.long_form import transcribe_long
from askd_ray.models.threads import allocate_threads
from askd_ray.serve.decode_fallback import transcribe_with_fallback
from askd_ray.serve.scheduler import Scheduler
from askd_ray.serve.transcription_service import ChunkResult, Model, TranscribeOptions, UnknownModelError
from askd_ray.text.languages import language_code
from askd_ray.torch_setup import Device, n_cores, usable_device

_BATCH_S = 30.0  # of audio in a call: what a short clip may have to wait for


@dataclass(frozen=True)
class Hardware:
    """What the models of a process run on: ``workers`` calls side by side, each on ``threads`` threads."""

    device: Device = "cpu"
    threads: int = 1
    workers: int = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and what it is."""

    model: Model
    engine: Engine


@dataclass(frozen=True)
class _Kind:
    """What stretches have in common that go in one call."""

    loaded: LoadedModel
    language: str | None
    decoding: Decoding
    window_samples: int


class ServedModels:
    """The models that this process serves, and the engine's time shared out among requests. An instance is
    :class:`~askd_ray.serve.transcription_service.SpeechEngine`.

    Which models these are may change while it works (:meth:`put`): a stretch that is in line is heard by
    the model that was there when it came.
    """

    def __init__(self, workers: int = 1):
        self.heard_at = -math.inf  # on the monotonic clock
        self._loaded: dict[str, LoadedModel] = {}
        self._scheduler = Scheduler[Waveform, _Kind, ChunkResult](_hear, _BATCH_S, workers)

    def put(self, loaded: LoadedModel) -> None:
        """Serve a model from now on, in the place of the one with its name."""
        self._loaded = self._loaded | {loaded.model.name: loaded}

    async def models(self) -> Sequence[Model]:
        """Return what is served; the first is the default."""
        return [its.model for its in self._loaded.values()]

    async def hear(self, stretch: Waveform, ask: TranscribeOptions, owner: str) -> ChunkResult:
        """Return what is said in a stretch.

        Raises :class:`UnknownModelError`, and :class:`AskdError` for a language that the model does not know.
        """
        loaded = self._loaded.get(ask.model)
        if loaded is None:
            raise UnknownModelError(ask.model, list(self._loaded))
        window = loaded.engine.window_samples(stretch)
        decoding = replace(ask.decoding, prompt=loaded.engine.fit_prompt(ask.decoding.prompt))
        kind = _Kind(loaded, ask.language, decoding, window)
        hearing = await self._scheduler.run(stretch, kind, window / SAMPLE_RATE_HZ, owner)
        self.heard_at = time.monotonic()
        return hearing

    async def check(self) -> None:
        """Run each model on a second of silence, when its turn comes; raises whatever goes wrong."""
        silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
        for name in self._loaded:
            await self.hear(silence, TranscribeOptions(name, "en"), "check")


def _hear(kind: _Kind, stretches: Sequence[Waveform]) -> list[ChunkResult]:
    begun = time.monotonic()
    heard = transcribe_with_fallback(kind.loaded.engine, stretches, kind.language, kind.decoding)
    worked_s = time.monotonic() - begun
    return [ChunkResult(its, kind.loaded.model.version, len(stretches), worked_s) for its in heard]


def allocate_hardware(path: Path, device: Device = "cpu", threads: int = 0) -> Hardware:
    """Share the cores out among calls of ``threads`` threads; 0: as many as a model in a folder makes good use of
    (:func:`~askd_ray.models.threads.allocate_threads`).
    """
    if device == "cuda":
        return Hardware(device)
    if not threads:
        threads = 1
        with contextlib.suppress(AskdError):  # who loads it says what is wrong with it
            threads = allocate_threads(read_bundle(path), n_cores())
    return Hardware(device, threads, max(1, n_cores() // threads))


def load(path: Path, name: str | None = None, hardware: Hardware = Hardware()) -> LoadedModel:
    """Load a bundle (int8 on the CPU, float16 on a GPU) or a bare CTranslate2 Whisper folder, and warm it up.

    Raises :class:`AskdError` when the folder holds no model.
    """
    info = read_bundle(path, hardware.device)
    engine = open_engine(info, hardware.device, hardware.threads, workers=hardware.workers)
    engine.transcribe([np.zeros(SAMPLE_RATE_HZ, np.float32)], "en", Decoding(confidence=True))
    model = Model(name or info.name, info.version, int(time.time()), engine.languages)
    return LoadedModel(model, engine)


class FallbackEngine:
    """An engine whose doubtful transcripts are decoded again, for recordings (askd_ray/models/long_form.py)."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def transcribe(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[Transcript]:
        """Return the transcript of each clip of at most 30 s."""
        return transcribe_with_fallback(self._engine, waveforms, language, GREEDY)


def transcribe_files(
    bundle: Path, files: Sequence[Path], language: str = "en", device: Device = "cpu"
) -> Iterator[tuple[Path, str]]:
    """Yield each audio file and its text, transcribed here with the bundle's model as the service would.

    ``language`` is a code, a tag or a name (:func:`~askd_ray.text.languages.language_code`).

    Raises :class:`AskdError` for a folder that is no bundle, a language that the model does not know, and a file that
    is missing or cannot be used, and where there is no GPU for ``device`` "cuda"; missing files, and what is no
    language, are found before the model is loaded.
    """
    language = language_code(language)
    usable_device(device == "cuda")
    for file in files:
        if not file.is_file():
            raise AskdError(f"audio file {file} does not exist")
    engine, vad = FallbackEngine(load(bundle, hardware=allocate_hardware(bundle, device)).engine), Vad()
    for file in files:
        try:
            waveform = decode(file.read_bytes())
        except AudioError as error:
            raise AskdError(f"{file}: {error}") from None
        yield file, transcribe_long(engine, vad, waveform, language).text
