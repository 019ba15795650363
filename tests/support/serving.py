"""Helper of the service's tests: audio files, a fake speech engine, and an app around it."""

import asyncio
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import soundfile
import uvicorn
from fastapi import FastAPI

from askd_ray.audio.decode import DecodedAudio, Waveform, decode, read_audio
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.files import write_json
from askd_ray.models.bundle import BUNDLE_FILE, hashes
from askd_ray.models.transcript import Transcript
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.replicas import Replicas
from askd_ray.serve.transcription_service import (
    MAX_AUDIO_S,
    ChunkResult,
    Model,
    TranscribeOptions,
    TranscriptionService,
)


def wav(waveform: Waveform, rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Return a waveform as a file of 16-bit samples."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format="WAV")
    return file.getvalue()


def spoken(speech: Path, n: int = 1) -> list[tuple[Waveform, str]]:
    """Return prompts of several words, each with its transcript."""
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if len(row["text"].split()) >= 8][:n]
    return [(decode((speech / row["audio"]).read_bytes()), row["text"]) for row in chosen]


def replicas(deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas."""
    processes = psutil.Process().children(recursive=True)
    return [p for p in processes if any(f"ServeReplica:askd:{deployment}" in part for part in p.cmdline())]


def kill_replicas(deployment: str) -> int:
    """Kill the processes of a deployment's replicas; return their number."""
    processes = replicas(deployment)
    for replica in processes:
        replica.kill()
    return len(processes)


class FakeSpeechEngine:
    """Returns the length of each chunk as its text; waits for ``gate`` and raises ``error`` where they are set."""

    def __init__(self, languages: tuple[str, ...] = ("en", "de")):
        self.languages = languages
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.received_options: list[TranscribeOptions] = []
        self.received_chunks: list[Waveform] = []

    async def models(self) -> Sequence[Model]:
        return [Model("student", "v1", 1, self.languages), Model("other", "v2", 2, ("en",))]

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        self.received_options.append(options)
        self.received_chunks.append(chunk)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return ChunkResult(self.transcript(chunk, options), "v1", 1, 0.01)

    def transcript(self, chunk: Waveform, options: TranscribeOptions) -> Transcript:
        """Return three words, with times spread evenly over the chunk where ``options`` ask for them."""
        language, text = options.language or "de", f"Secret {len(chunk)} samples."
        seconds = len(chunk) / SAMPLE_RATE_HZ
        letters = tuple("Secret")[1:]  # a token each: with fewer tokens a long chunk would be decoded again
        texts = (" S", *letters, f" {len(chunk)}", " sam", *tuple("ples"), *[""] * int(2 * seconds), ".")
        ids = tuple(range(len(texts)))
        if not options.decoding.confidence:
            return Transcript(text, ids, -0.2, 0.1, language=language)
        times = tuple(float(t) for t in np.linspace(0.0, seconds, len(texts) + 1))
        return Transcript(text, ids, -0.2, 0.1, True, texts, (0.8,) * len(texts), times, language)

    async def check(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


class BundleEngine(FakeSpeechEngine):
    """Its first model has a bundle; the other one has no decoder."""

    def __init__(self, bundle: Path | None):
        super().__init__()
        self.bundle = bundle

    async def models(self) -> Sequence[Model]:
        first, other = await super().models()
        return [replace(first, bundle=self.bundle), replace(other, reads_paths=True)]


class InProcessDecoder:
    """Decodes in this process; the sandbox has separate tests."""

    async def decode(self, audio: bytes, max_s: float, partial: bool = False) -> DecodedAudio:
        return read_audio(audio, max_s, partial)


def build_test_app(
    engine: FakeSpeechEngine,
    limits: RequestLimits | None = None,
    max_audio_s: float = MAX_AUDIO_S,
    replicas: Replicas | None = None,
) -> FastAPI:
    """Return the app of the service around an engine."""
    service = TranscriptionService(engine, InProcessDecoder(), max_audio_s)
    return build_app(service, limits or RequestLimits(), ServiceMetrics(), replicas=replicas)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an app on loopback, in a thread; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield "http://127.0.0.1:{1}".format(*server.servers[0].sockets[0].getsockname())
    server.should_exit = True
    thread.join()


def recording_of(clips: Sequence[Waveform]) -> Waveform:
    """Return clips with pauses of a second before, between and after them."""
    pause = np.zeros(SAMPLE_RATE_HZ, np.float32)
    return np.concatenate([piece for clip in clips for piece in (pause, clip)] + [pause])


def bundle_of(folder: Path, weights: Path, changed: bytes = b"") -> Path:
    """Write a bundle with Whisper's weights; ``changed`` bytes after them make it another version."""
    shutil.copytree(weights, folder / "ctranslate2-int8")
    with (folder / "ctranslate2-int8" / "model.bin").open("ab") as model:
        model.write(changed)
    write_json(folder / BUNDLE_FILE, {"name": folder.name, "window": {"silence_s": 0.3}, "sha256": hashes(folder)})
    return folder
