import asyncio
from pathlib import Path

import numpy as np
import pytest
from serving import spoken, wav

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.errors import AskdError
from askd_ray.serve.transcriber import Transcriber, transcribe_files
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


@pytest.mark.slow
def test_transcribe_files_yields_each_text(tmp_path: Path, weights: Path, speech: Path):
    ((clip, text),) = spoken(speech)
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(wav(clip))
    bad.write_bytes(b"no sound")
    texts = transcribe_files(weights, [good, bad])
    path, references = next(texts)
    normalize = normalizer("en")
    assert path == good and count_word_errors([normalize(text)], [normalize(references)]).rate < 0.2
    with pytest.raises(AskdError, match=r"bad\.wav: unreadable audio"):
        next(texts)
    with pytest.raises(AskdError, match=r"gone\.wav does not exist"):
        next(transcribe_files(weights, [good, tmp_path / "gone.wav"]))


@pytest.mark.full
@pytest.mark.slow
def test_language_name_spellings_of_transcribe(weights: Path, tmp_path: Path, speech: Path):
    ((clip, _),) = spoken(speech)
    file = tmp_path / "good.wav"
    file.write_bytes(wav(clip))
    (expected,) = transcribe_files(weights, [file], "en")
    assert list(transcribe_files(weights, [file], "English")) == [expected]
    with pytest.raises(AskdError, match=r"'de'.*English-only"):
        next(transcribe_files(weights, [file], "German"))
    with pytest.raises(AskdError, match="'Klingon' is none of Whisper's"):  # no model is loaded: there is none
        next(transcribe_files(tmp_path / "no bundle", [file], "Klingon"))


@pytest.fixture(scope="module")
def transcriber(weights: Path) -> Transcriber:
    return Transcriber(weights, threads=1)


@pytest.mark.slow
def test_path_bytes_and_waveform_give_the_same_text(transcriber: Transcriber, speech: Path, tmp_path: Path):
    ((clip, reference),) = spoken(speech)
    file = tmp_path / "clip.wav"
    file.write_bytes(wav(clip))
    result = transcriber.transcribe(file)
    normalize = normalizer("en")
    assert count_word_errors([normalize(reference)], [normalize(result.text)]).rate < 0.2
    assert result.language == "en" and result.duration_s == pytest.approx(len(clip) / SAMPLE_RATE_HZ, abs=0.001)
    times = [time for word in result.words for time in (word.start_s, word.end_s)]
    assert len(result.words) == len(result.text.split()) and times == sorted(times)
    for audio in (str(file), file.read_bytes(), clip):
        assert transcriber.transcribe(audio).text == result.text
    assert transcriber.transcribe(file, words=False).text == result.text


@pytest.mark.slow
def test_transcriber_works_inside_an_event_loop(transcriber: Transcriber, speech: Path):
    ((clip, _),) = spoken(speech)

    async def cell() -> str:
        return transcriber.transcribe(clip, "en").text

    assert asyncio.run(cell()) == transcriber.transcribe(clip, "en").text != ""


@pytest.mark.slow
def test_silence_has_no_segments(transcriber: Transcriber):
    result = transcriber.transcribe(np.zeros(SAMPLE_RATE_HZ, np.float32))
    assert (result.text, result.segments, result.duration_s) == ("", (), 1.0)


@pytest.mark.slow
def test_silent_clips_do_not_block_the_next_one(transcriber: Transcriber, speech: Path):
    """The VAD drops a silent clip before the engine has decoded it; each such clip had blocked a worker forever."""
    ((clip, _),) = spoken(speech)
    noise = np.random.default_rng(0).normal(0.0, 0.1, 8 * SAMPLE_RATE_HZ).astype(np.float32)
    assert [transcriber.transcribe(noise, "en").text for _ in range(4)] == [""] * 4
    assert transcriber.transcribe(clip, "en").text != ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("gone.wav", "gone.wav does not exist"),
        (b"no sound", "the audio: unreadable audio"),
        (np.zeros((2, 16000), np.float32), r"shape \(2, 16000\)"),
        (np.zeros(16000), "float64"),
    ],
    ids=["missing", "bytes", "stereo", "float64"],
)
def test_invalid_audio_is_refused(transcriber: Transcriber, audio: object, message: str):
    with pytest.raises(AskdError, match=message):
        transcriber.transcribe(audio)  # type: ignore[arg-type]
