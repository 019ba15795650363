import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from askd_ray.audio.decode import AudioError
from askd_ray.errors import AskdError
from askd_ray.models.engine import Transcript
from askd_ray.serve.engine import Transcriber, transcribe_files


def wav(seconds: float, level: float = 0.5) -> bytes:
    samples = np.random.default_rng(0).uniform(-level, level, int(seconds * 16_000))
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


class CountingEngine:
    """Says which clip it heard, and how long that was."""

    def __init__(self):
        self.lengths: list[int] = []

    def transcribe(self, waveforms: Sequence[np.ndarray], language: str = "en") -> list[Transcript]:
        texts = []
        for waveform in waveforms:
            self.lengths.append(len(waveform))
            texts.append(Transcript(f"{language}{len(self.lengths)}", (), 0.0, 0.0))
        return texts


def test_long_audio_is_transcribed_stretch_by_stretch_and_joined():
    engine = CountingEngine()
    result = Transcriber(engine, "m").transcribe(wav(65.0), "de")
    assert result.text == "de1 de2 de3"
    assert result.duration_s == 65.0
    assert sum(engine.lengths) == 65 * 16_000


def test_the_second_file_starts_afresh():
    engine = CountingEngine()
    transcriber = Transcriber(engine, "m")
    transcriber.transcribe(wav(31.0))
    engine.lengths.clear()
    assert transcriber.transcribe(wav(1.0)).text == "en1"


def test_silence_is_empty_text_and_no_work():
    engine = CountingEngine()
    assert Transcriber(engine, "m").transcribe(wav(3.0, level=0.0)).text == ""
    assert engine.lengths == []


@pytest.mark.parametrize("audio", [b"", b"not audio at all", wav(2.0)[:-999]])
def test_bad_audio(audio: bytes):
    with pytest.raises(AudioError):
        Transcriber(CountingEngine(), "m").transcribe(audio)


def test_too_long_audio():
    with pytest.raises(AudioError, match="longer than 5 s"):
        Transcriber(CountingEngine(), "m", max_audio_s=5.0).transcribe(wav(5.5))


def test_check_runs_the_model_even_though_the_clip_is_silent():
    engine = CountingEngine()
    Transcriber(engine, "m").check()
    assert engine.lengths == [16_000]


def test_files_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("askd_ray.serve.engine.open_bundle", lambda path: Transcriber(CountingEngine(), path.name))
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(wav(1.0))
    bad.write_bytes(b"no sound")
    texts = transcribe_files(tmp_path, [good, bad], "de")
    assert next(texts) == (good, "de1")
    with pytest.raises(AskdError, match=r"bad\.wav: unreadable audio"):
        next(texts)
    with pytest.raises(AskdError, match=r"gone\.wav does not exist"):
        next(transcribe_files(tmp_path, [good, tmp_path / "gone.wav"]))
