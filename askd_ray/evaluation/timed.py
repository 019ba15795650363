"""Systems for speed measurements: from the bytes of an audio file to its text, everything included."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import PADDED_S
from askd_ray.errors import AskdError
from askd_ray.evaluation.systems import bundle_info
from askd_ray.models.bundle import open_engine
from askd_ray.models.cublas import load_cublas
from askd_ray.torch_setup import Device


class TimedSystem(Protocol):
    """A speech recogniser. All work between the encoded audio and the text counts as its time."""

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        ...


class EngineSystem:
    """Our engine: a bundle with its trimmed windows, every other model with 30 s windows."""

    def __init__(self, reference: str, threads: int, device: Device):
        self._engine = open_engine(bundle_info(reference, device), device, threads)

    def transcribe(self, audio: bytes, language: str) -> str:
        """Decode the audio and transcribe it.

        Raises :class:`AskdError` when the audio cannot be decoded.
        """
        return self._engine.transcribe([_waveform(audio)], language)[0].text

    def seconds(self, audios: Sequence[bytes], language: str) -> float:
        """Return the time to transcribe clips in one call."""
        begun = time.perf_counter()
        self._engine.transcribe([_waveform(audio) for audio in audios], language)
        return time.perf_counter() - begun


class StockSystem:
    """faster-whisper as it is usually run: greedy, in int8 on the CPU and in float16 on a GPU."""

    def __init__(self, folder: Path, threads: int, device: Device):
        from faster_whisper import WhisperModel  # imported here: it would count as memory of the other systems

        if device == "cuda":
            load_cublas()
        compute_type = "int8" if device == "cpu" else "float16"
        self._model = WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=threads)

    def transcribe(self, audio: bytes, language: str) -> str:
        """Decode the audio and transcribe it; the segments are a generator, which works while it is read."""
        segments, _ = self._model.transcribe(io.BytesIO(audio), language=language, beam_size=1, temperature=0.0)
        return "".join(segment.text for segment in segments).strip()


def _waveform(audio: bytes) -> Waveform:
    try:
        return decode(audio, max_s=PADDED_S)
    except AudioError as error:
        raise AskdError(f"evaluate: a clip cannot be decoded: {error}") from None
