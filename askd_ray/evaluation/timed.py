"""Systems for speed measurements: from the bytes of an audio file to its text, everything included."""

import time
from collections.abc import Sequence
from typing import Protocol

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import PADDED_S
from askd_ray.audio.vad import Vad
from askd_ray.errors import AskdError
from askd_ray.evaluation.systems import bundle_info
from askd_ray.models.bundle import open_engine
from askd_ray.models.served import transcribe_as_served
from askd_ray.models.transcript import Transcript
from askd_ray.torch_setup import Device


class TimedSystem(Protocol):
    """A speech recogniser. All work between the encoded audio and the text counts as its time."""

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        ...


class EngineSystem:
    """Our engine on the served path: a bundle with its trimmed windows, every other model with 30 s windows."""

    def __init__(self, reference: str, threads: int, device: Device):
        self._engine = open_engine(bundle_info(reference, device), device, threads)
        self._vad = Vad()

    def transcribe(self, audio: bytes, language: str) -> str:
        """Decode the audio and transcribe it.

        Raises :class:`AskdError` when the audio cannot be decoded.
        """
        return self._transcribe([audio], language)[0].text

    def seconds(self, audios: Sequence[bytes], language: str) -> float:
        """Return the time to transcribe clips in one call."""
        begun = time.perf_counter()
        self._transcribe(audios, language)
        return time.perf_counter() - begun

    def _transcribe(self, audios: Sequence[bytes], language: str) -> list[Transcript]:
        return transcribe_as_served(self._engine, self._vad, [_waveform(audio) for audio in audios], language)


def _waveform(audio: bytes) -> Waveform:
    try:
        return decode(audio, max_s=PADDED_S)
    except AudioError as error:
        raise AskdError(f"evaluate: a clip cannot be decoded: {error}") from None
