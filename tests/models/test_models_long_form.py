import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of
from askd_ray.models.engine import Engine, Transcript
from askd_ray.models.long_form import joined, transcribe_long
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


class Listener:
    """Keeps what it hears, and says which clip that was."""

    def __init__(self):
        self.heard: list[Waveform] = []

    def transcribe(self, waveforms: Sequence[Waveform], language: str = "en") -> list[Transcript]:
        transcripts = []
        for waveform in waveforms:
            self.heard.append(waveform)
            number = len(self.heard)
            transcripts.append(Transcript(f"{language}{number}", (number, 7), -0.5, 0.2, ended=number != 2))
        return transcripts


@settings(max_examples=30, deadline=None)
@given(n_samples=st.integers(1, 4 * PADDED_SAMPLES), seed=st.integers(0, 2**16))
def test_every_sample_is_heard_once(n_samples: int, seed: int):
    waveform = np.random.default_rng(seed).uniform(0.1, 1.0, n_samples).astype(np.float32)
    listener = Listener()
    transcript = transcribe_long(listener, waveform, "de")
    assert np.array_equal(np.concatenate(listener.heard), waveform)
    assert max(map(len, listener.heard)) <= PADDED_SAMPLES
    assert transcript.text == " ".join(f"de{i + 1}" for i in range(len(listener.heard)))


@settings(max_examples=20, deadline=None)
@given(n_samples=st.integers(1, PADDED_SAMPLES))
def test_a_clip_of_up_to_thirty_seconds_is_the_engines_own(n_samples: int):
    waveform = np.full(n_samples, 0.1, np.float32)
    assert transcribe_long(Listener(), waveform) == Listener().transcribe([waveform])[0]


def test_stretches_in_which_nothing_was_recorded_are_not_given_to_the_model():
    waveform = np.full(3 * PADDED_SAMPLES, 0.5, np.float32)
    waveform[PADDED_SAMPLES // 2 : -PADDED_SAMPLES // 2] = 0.0
    listener = Listener()
    transcribe_long(listener, waveform)
    assert 0 < len(listener.heard) < 4 and all(clip.any() for clip in listener.heard)
    assert transcribe_long(Listener(), np.zeros(SAMPLE_RATE_HZ, np.float32)) == Transcript("", (), 0.0, 1.0)
    assert transcribe_long(Listener(), np.zeros(0, np.float32)).text == ""


def test_transcripts_are_joined():
    first = Transcript("One two", (1, 2, 3), -0.2, 0.6, True, (" One", " t", "wo"), (0.9, 0.8, 0.7))
    second = Transcript("three", (4,), -0.8, 0.1, False, ("three",), (0.5,))
    whole = joined([first, Transcript("", (), 0.0, 0.9), second])
    assert (whole.text, whole.token_ids) == ("One two three", (1, 2, 3, 4))
    assert whole.avg_logprob == pytest.approx((4 * -0.2 + 0.0 + 2 * -0.8) / 7)
    assert (whole.no_speech_prob, whole.ended) == (0.1, False)
    assert "".join(whole.token_texts).strip() == whole.text and whole.token_probs == (0.9, 0.8, 0.7, 0.5)


@pytest.mark.slow
def test_a_long_recording_has_about_the_word_errors_of_its_parts(weights: Path, speech: Path):
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if len(row["text"].split()) >= 8][:14]
    clips = [decode((speech / row["audio"]).read_bytes()) for row in rows]
    pause = np.random.default_rng(0).normal(0.0, 1e-3, samples_of(0.4)).astype(np.float32)
    recording = np.concatenate([piece for clip in clips for piece in (clip, pause)])
    assert len(recording) > 1.5 * PADDED_SAMPLES
    engine, normalize = Engine(weights, silence_s=None), normalizer("en")
    references = [normalize(row["text"]) for row in rows]
    alone = count_word_errors(references, [normalize(t.text) for t in engine.transcribe(clips)])
    whole = count_word_errors([" ".join(references)], [normalize(transcribe_long(engine, recording).text)])
    assert whole.n_reference == alone.n_reference > 100
    assert abs(whole.rate - alone.rate) < 0.05
    assert alone.rate < 0.2
