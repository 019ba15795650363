from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from serving import spoken

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Vad
from askd_ray.models.engine import Engine, Transcript
from askd_ray.models.long_form import join_transcripts, transcribe_long
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


class RecordingEngine:
    """Records its clips; each transcript is the clip's number."""

    def __init__(self):
        self.clips: list[Waveform] = []

    def transcribe(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[Transcript]:
        transcripts = []
        for waveform in waveforms:
            self.clips.append(waveform)
            number = len(self.clips)
            transcripts.append(Transcript(f"{language}{number}", (number, 7), -0.5, 0.2, ended=number != 2))
        return transcripts


def test_speech_is_transcribed_once_in_order(vad: Vad, speech: Path):
    """90 s of real speech with long and short pauses."""
    rng = np.random.default_rng(0)
    clips = [waveform for waveform, _ in spoken(speech, 16)]
    pauses = [rng.normal(0.0, 1e-4, samples_of(s)).astype(np.float32) for s in [0.3, 0.5, 4.0, 0.4] * 4]
    recording = np.concatenate([piece for pair in zip(clips, pauses, strict=True) for piece in pair])
    engine = RecordingEngine()
    transcript = transcribe_long(engine, vad, recording, "de")
    assert transcript.text == " ".join(f"de{i + 1}" for i in range(len(engine.clips))) and len(engine.clips) > 4
    assert max(map(len, engine.clips)) <= PADDED_SAMPLES
    energy = sum(float(np.square(clip).sum()) for clip in engine.clips)
    assert energy == pytest.approx(float(np.square(recording).sum()), rel=1e-3)  # the chunks hold all loud parts
    assert sum(map(len, engine.clips)) < len(recording) - samples_of(8.0)  # but not the long pauses


def test_short_clip_equals_the_engine(vad: Vad, speech: Path):
    ((waveform, _),) = spoken(speech)
    assert transcribe_long(RecordingEngine(), vad, waveform) == RecordingEngine().transcribe([waveform])[0]


def test_silence_is_not_decoded(vad: Vad):
    engine = RecordingEngine()
    assert transcribe_long(engine, vad, np.zeros(SAMPLE_RATE_HZ, np.float32)) == Transcript("", (), 0.0)
    assert transcribe_long(engine, vad, np.zeros(0, np.float32)).text == ""
    assert engine.clips == []


def test_transcripts_are_joined():
    first = Transcript("One two", (1, 2, 3), -0.2, 0.6, True, (" One", " t", "wo"), (0.9, 0.8, 0.7))
    second = Transcript("three", (4,), -0.8, 0.1, False, ("three",), (0.5,))
    whole = join_transcripts([first, Transcript("", (), 0.0, 0.9), second])
    assert (whole.text, whole.token_ids) == ("One two three", (1, 2, 3, 4))
    assert whole.avg_logprob == pytest.approx((4 * -0.2 + 0.0 + 2 * -0.8) / 7)
    assert (whole.no_speech_prob, whole.ended) == (None, False)
    assert "".join(whole.token_texts).strip() == whole.text and whole.token_probs == (0.9, 0.8, 0.7, 0.5)


@pytest.mark.full
@pytest.mark.slow
def test_long_recording_has_the_word_errors_of_the_parts(vad: Vad, weights: Path, speech: Path):
    rows = spoken(speech, 14)
    clips = [waveform for waveform, _ in rows]
    pause = np.random.default_rng(0).normal(0.0, 1e-3, samples_of(0.4)).astype(np.float32)
    recording = np.concatenate([piece for clip in clips for piece in (clip, pause)])
    assert len(recording) > 1.5 * PADDED_SAMPLES
    engine, normalize = Engine(weights), normalizer("en")
    references = [normalize(text) for _, text in rows]
    alone = count_word_errors(references, [normalize(t.text) for t in engine.transcribe(clips)])
    whole = count_word_errors([" ".join(references)], [normalize(transcribe_long(engine, vad, recording).text)])
    assert whole.n_reference == alone.n_reference > 100
    assert abs(whole.rate - alone.rate) < 0.05
    assert alone.rate < 0.2
