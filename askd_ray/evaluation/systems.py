"""The ASR systems of a comparison: opens any model reference as an object that turns waveforms into text."""

import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import httpx
import soundfile

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.audio.vad import Vad
from askd_ray.errors import AskdError
from askd_ray.files import local_path
from askd_ray.models.bundle import BundleInfo, open_engine, read_bundle
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.models.served import transcribe_raw_and_served
from askd_ray.models.transcript import Decoding, Transcript
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import Device

_KEY = "OPENAI_API_KEY"
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class SystemTranscript:
    """A model's transcript of a clip, with the probability of each token if the model returns it."""

    text: str
    token_texts: tuple[str, ...] | None = None
    token_probs: tuple[float, ...] | None = None
    ended: bool | None = None


@dataclass(frozen=True)
class SystemTranscripts:
    """A model's transcripts of a clip: as served, and the raw one, which a server does not return."""

    served: SystemTranscript
    raw: SystemTranscript | None = None


class AsrSystem(Protocol):
    """A model in a comparison."""

    def transcribe(self, waveforms: Sequence[Waveform], language: str) -> list[SystemTranscripts]:
        """Return the transcripts of each clip."""
        ...


def is_url(reference: str) -> bool:
    """Return whether a model reference is a server's URL."""
    return reference.startswith(("http://", "https://"))


def bundle_info(reference: str, device: Device = "cpu") -> BundleInfo:
    """Return the engine's folder and the window of a model reference that is no URL; convert the model if needed.

    Raises :class:`AskdError` when there is no such model.
    """
    folder = local_path(reference)
    if (folder / "bundle.json").is_file():
        return read_bundle(folder, device)
    return read_bundle(ctranslate2_folder(reference), device)


def weights_hash(reference: str, device: Device = "cpu") -> str:
    """Return a hash of the weights, which identifies a model's output; a server's weights are unknown: a random value.

    The output on a CPU differs from that on a GPU: the weights are int8 on a CPU and float16 on a GPU.
    """
    if is_url(reference):
        return uuid4().hex
    if (local_path(reference) / "bundle.json").is_file():
        info = bundle_info(reference, device)
        return f"{info.weights_sha256}/{info.window}"
    return fingerprint(reference) if device == "cpu" else f"{fingerprint(reference)}/{device}"


def languages_of(reference: str) -> tuple[str, ...] | None:
    """Return the codes of the languages that a model supports; None for a server, whose languages are unknown.

    Raises :class:`AskdError` when there is no such model.
    """
    if is_url(reference):
        return None
    if not (local_path(reference) / "bundle.json").is_file():
        return Tokens(resolve(reference)).languages
    info = bundle_info(reference)
    return info.languages if info.reader == "ctc" else Tokens(info.folder).languages


def open_system(reference: str, threads: int = 0, device: Device = "cpu") -> AsrSystem:
    """Open a bundle (with its trimmed windows), another model (with 30 s windows), or a server.

    Raises :class:`AskdError` when there is no such model.
    """
    return _Server(reference) if is_url(reference) else _Local(bundle_info(reference, device), threads, device)


class _Local:
    """Our engine on the served path, in int8 on the CPU and float16 on a GPU."""

    def __init__(self, info: BundleInfo, threads: int, device: Device):
        self._engine = open_engine(info, device, threads)
        self._vad = Vad()

    def transcribe(self, waveforms: Sequence[Waveform], language: str) -> list[SystemTranscripts]:
        """Return the transcripts of each clip, with tokens and their probabilities."""
        settings = Decoding(confidence=True)
        raw, served = transcribe_raw_and_served(self._engine, self._vad, waveforms, language, settings)
        return [SystemTranscripts(_of_engine(s), _of_engine(r)) for s, r in zip(served, raw, strict=True)]


def _of_engine(transcript: Transcript) -> SystemTranscript:
    return SystemTranscript(transcript.text, transcript.token_texts, transcript.token_probs, transcript.ended)


class _Server:
    """A model behind the OpenAI audio API, one clip per request. ``OPENAI_API_KEY`` is sent if it is set."""

    def __init__(self, url: str):
        address, _, self._model = url.partition("#")
        if not self._model:
            raise AskdError(f"model {url}: the model name is missing: {address}#NAME")
        key = os.environ.get(_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = f"{address.rstrip('/')}/audio/transcriptions"
        self._client = httpx.Client(headers=headers, timeout=_PATIENCE_S)

    def transcribe(self, waveforms: Sequence[Waveform], language: str) -> list[SystemTranscripts]:
        """Return the transcript of each clip.

        Raises :class:`AskdError` when the server does not answer, and when it answers with an error.
        """
        return [SystemTranscripts(SystemTranscript(self._request(waveform, language))) for waveform in waveforms]

    def _request(self, waveform: Waveform, language: str) -> str:
        file = io.BytesIO()
        soundfile.write(file, waveform, SAMPLE_RATE_HZ, format="FLAC")
        fields = {"model": self._model, "language": language, "temperature": "0"}
        try:
            answer = self._client.post(self._url, data=fields, files={"file": ("clip.flac", file.getvalue())})
            return str(answer.raise_for_status().json()["text"])
        except httpx.HTTPStatusError as error:
            reason = " ".join(error.response.text.split())[:200]
            raise AskdError(f"{self._url} answers {error.response.status_code}: {reason}") from None
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise AskdError(f"{self._url} does not answer like the OpenAI audio API: {error}") from None


def cpu_model() -> str:
    """Return the name of this machine's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
