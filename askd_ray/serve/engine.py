"""Audio files to text with an exported student, without Ray: what the service runs, and `askd transcribe`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from askd_ray.audio.decode import AudioError, decode, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.engine import Engine
from askd_ray.models.long_form import ClipEngine, transcribe_long

MAX_AUDIO_S = 1800.0  # 115 MB as a waveform; a file of 25 MiB rarely holds more speech

Device = Literal["cpu", "cuda"]
_FOLDERS: dict[Device, tuple[str, str]] = {
    "cpu": ("ctranslate2-int8", "int8"),
    "cuda": ("ctranslate2-float16", "float16"),
}


@dataclass(frozen=True)
class Transcription:
    """The text of an audio file, and how long the audio is."""

    text: str
    duration_s: float


@dataclass(frozen=True)
class BundleInfo:
    """What is known of a model folder before its weights are loaded.

    ``silence_s`` is the silence behind the clip in its window; None means windows of 30 s.
    """

    name: str
    folder: Path
    silence_s: float | None


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


def read_bundle(path: Path, device: Device = "cpu") -> BundleInfo:
    """Look into a bundle, or a bare CTranslate2 Whisper folder, without loading it.

    Raises :class:`AskdError` when the folder is neither.
    """
    path = path.expanduser().resolve()
    if (path / "bundle.json").is_file():
        name, silence_s = _described(path / "bundle.json")
        info = BundleInfo(name, path / _FOLDERS[device][0], silence_s)
    else:
        info = BundleInfo(path.name, path, silence_s=None)
    if not (info.folder / "model.bin").is_file():
        raise AskdError(
            f"no model in {info.folder}: a folder that `askd export` wrote or a CTranslate2 Whisper folder is expected"
        )
    return info


def open_bundle(path: Path, device: Device = "cpu", threads: int = 0) -> Transcriber:
    """Load a bundle (int8 on the CPU, float16 on a GPU) or a bare CTranslate2 Whisper folder.

    ``threads`` = 0 takes all cores. Raises :class:`AskdError` when the folder holds no model.
    """
    info = read_bundle(path, device)
    engine = Engine(
        info.folder,
        compute_type=_FOLDERS[device][1],
        threads=threads,
        device=device,
        silence_s=info.silence_s,
    )
    return Transcriber(engine, info.name)


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


def _described(file: Path) -> tuple[str, float]:
    try:
        description: dict[str, Any] = read_json(file)
        return str(description["name"]), float(description["window"]["silence_s"])
    except (ValueError, KeyError, TypeError):
        raise AskdError(f"{file} is damaged: it must hold name and window.silence_s; export the model again") from None
