"""Audio files to text with an exported student, without Ray: what the service runs, and `askd transcribe`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from askd_ray.audio.decode import AudioError, decode, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.errors import AskdError
from askd_ray.models.bundle import Device, open_engine, read_bundle
from askd_ray.models.long_form import ClipEngine, transcribe_long

MAX_AUDIO_S = 1800.0  # 115 MB as a waveform; a file of 25 MiB rarely holds more speech


@dataclass(frozen=True)
class Transcription:
    """The text of an audio file, and how long the audio is."""

    text: str
    duration_s: float


class Transcriber:
    """A loaded model that turns audio files into text. It keeps nothing from one file to the next."""

    def __init__(self, engine: ClipEngine, name: str, max_audio_s: float = MAX_AUDIO_S):
        self.name = name
        self._engine = engine
        self._max_audio_s = max_audio_s

    def transcribe(self, audio: bytes, language: str = "en") -> Transcription:
        """Return the text of an audio file: wav, flac, ogg, mp3, m4a, webm and whatever else FFmpeg reads.

        Long audio is decoded stretch by stretch, so that other files get their turn in between.

        Raises :class:`askd_ray.audio.decode.AudioError` when the audio cannot be used or is too long, and
        :class:`AskdError` when the model does not know the language.
        """
        waveform = decode(audio, self._max_audio_s)
        return Transcription(transcribe_long(self._engine, waveform, language).text, duration_s(waveform))

    def check(self) -> None:
        """Run the model on a second of silence; raises whatever goes wrong. Loads what is loaded lazily."""
        self._engine.transcribe([np.zeros(SAMPLE_RATE_HZ, np.float32)])


def open_bundle(path: Path, device: Device = "cpu", threads: int = 0) -> Transcriber:
    """Load a bundle (int8 on the CPU, float16 on a GPU) or a bare CTranslate2 Whisper folder.

    ``threads`` = 0 takes all cores. Raises :class:`AskdError` when the folder holds no model.
    """
    info = read_bundle(path, device)
    return Transcriber(open_engine(info, device, threads), info.name)


def transcribe_files(bundle: Path, files: Sequence[Path], language: str = "en") -> Iterator[tuple[Path, str]]:
    """Yield each audio file and its text, transcribed here with the bundle's model.

    Raises :class:`AskdError` for a folder that is no bundle, a language that the model does not know, and a file that
    is missing or cannot be used; missing files are found before the model is loaded.
    """
    for file in files:
        if not file.is_file():
            raise AskdError(f"audio file {file} does not exist")
    transcriber = open_bundle(bundle)
    for file in files:
        try:
            yield file, transcriber.transcribe(file.read_bytes(), language).text
        except AudioError as error:
            raise AskdError(f"{file}: {error}") from None
