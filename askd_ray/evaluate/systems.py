"""What is compared: anything that turns the bytes of an audio file into text."""

import io
import platform
from pathlib import Path
from typing import Protocol

from askd_ray.audio.decode import AudioError, decode
from askd_ray.audio.units import PADDED_S
from askd_ray.errors import AskdError
from askd_ray.models.engine import Engine


class System(Protocol):
    """A recogniser. Everything between the encoded audio and the text is its own affair, and its own time."""

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        ...


class EngineSystem:
    """Our engine. With ``silence_s`` it encodes trimmed windows, with None 30 s."""

    def __init__(self, folder: Path, silence_s: float | None, threads: int):
        self._engine = Engine(folder, compute_type="int8", threads=threads, silence_s=silence_s)

    def transcribe(self, audio: bytes, language: str) -> str:
        """Decode the audio and transcribe it.

        Raises :class:`AskdError` when the audio cannot be decoded.
        """
        try:
            waveform = decode(audio, max_s=PADDED_S)
        except AudioError as error:
            raise AskdError(f"evaluate: a held-out clip cannot be decoded: {error}") from None
        return self._engine.transcribe([waveform], language)[0].text


class StockSystem:
    """faster-whisper as people run it, greedy and in int8. It comes with the extra ``demo``."""

    def __init__(self, folder: Path, threads: int):
        from faster_whisper import WhisperModel

        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(self, audio: bytes, language: str) -> str:
        """Decode the audio and transcribe it; the segments are a generator, so reading them is the work."""
        segments, _ = self._model.transcribe(io.BytesIO(audio), language=language, beam_size=1, temperature=0.0)
        return "".join(segment.text for segment in segments).strip()


def cpu_model() -> str:
    """Return the name of this machine's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
