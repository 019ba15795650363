from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import spoken

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Span, Vad
from askd_ray.models.engine import Engine
from askd_ray.models.served import (
    halves_are_better,
    halves_with_missing_words,
    is_one_chunk,
    join_transcripts,
    transcribe_as_served,
    transcribe_raw_and_served,
)
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


class RecordingEngine:
    """Records its clips; each transcript is the clip's number, and has more tokens than any clip needs."""

    def __init__(self):
        self.clips: list[Waveform] = []
        self.settings: list[Decoding] = []

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        assert decoding is not None and language is not None
        self.settings.append(decoding)
        self.clips += waveforms
        first = len(self.clips) - len(waveforms) + 1
        tokens = tuple(range(60))
        return [Transcript(f"{language}{first + i}", tokens, -0.5, language=language) for i, _ in enumerate(waveforms)]


def long_recording(speech: Path) -> Waveform:
    """90 s of real speech with long and short pauses."""
    rng = np.random.default_rng(0)
    clips = [waveform for waveform, _ in spoken(speech, 16)]
    pauses = [rng.normal(0.0, 1e-4, samples_of(s)).astype(np.float32) for s in [0.3, 0.5, 4.0, 0.4] * 4]
    return np.concatenate([piece for pair in zip(clips, pauses, strict=True) for piece in pair])


def test_speech_is_transcribed_once_in_order(vad: Vad, speech: Path):
    recording, engine = long_recording(speech), RecordingEngine()
    (transcript,) = transcribe_as_served(engine, vad, [recording], "de")
    assert transcript.text == " ".join(f"de{i + 1}" for i in range(len(engine.clips))) and len(engine.clips) > 4
    assert max(map(len, engine.clips)) <= PADDED_SAMPLES
    energy = sum(float(np.square(clip).sum()) for clip in engine.clips)
    assert energy == pytest.approx(float(np.square(recording).sum()), rel=1e-3)  # the chunks hold all loud parts
    assert sum(map(len, engine.clips)) < len(recording) - samples_of(8.0)  # but not the long pauses


def test_what_both_paths_decode_alike_is_decoded_once(vad: Vad, speech: Path):
    ((short, _),) = spoken(speech)
    recording, silence = long_recording(speech), np.zeros(SAMPLE_RATE_HZ, np.float32)
    engine, alone = RecordingEngine(), RecordingEngine()
    raw, served = transcribe_raw_and_served(engine, vad, [short, recording, silence], "en")
    transcribe_as_served(alone, vad, [recording], "en")
    assert len(engine.clips) == len(alone.clips) + 2 and engine.settings == [GREEDY]
    assert served[:2] == raw[:2] and raw[0].text == "en1"
    assert (raw[2].text, served[2].text) == (f"en{len(engine.clips)}", "")  # the VAD finds no speech


def test_clip_of_over_20_s_has_a_chunk_of_its_speech(vad: Vad, speech: Path):
    ((clip, _),) = spoken(speech)
    engine = RecordingEngine()
    padded = np.concatenate([np.zeros(samples_of(21.0), np.float32), clip])
    raw, served = transcribe_raw_and_served(engine, vad, [padded], "en")
    assert (raw[0].text, served[0].text) == ("en1", "en2")
    assert len(engine.clips[0]) == len(padded) and len(engine.clips[1]) < len(clip) + samples_of(0.5)


def test_silence_has_an_empty_text(vad: Vad):
    assert transcribe_as_served(RecordingEngine(), vad, [np.zeros(SAMPLE_RATE_HZ, np.float32)], "en")[0].text == ""
    long_silence = np.zeros(samples_of(31.0), np.float32)
    engine = RecordingEngine()
    assert transcribe_as_served(engine, vad, [long_silence, np.zeros(0, np.float32)], "en") == [
        Transcript("", (), 0.0),
        Transcript("", (), 0.0),
    ]
    assert [len(clip) for clip in engine.clips] == [0]
    assert transcribe_as_served(engine, vad, [], "en") == []


@pytest.mark.parametrize(("seconds", "one_chunk"), [(0.0, True), (20.0, True), (20.001, False)])
def test_what_is_decoded_while_the_vad_runs(seconds: float, one_chunk: bool):
    assert is_one_chunk(np.zeros(samples_of(seconds), np.float32)) is one_chunk


def test_halves_of_a_chunk_with_missing_words():
    waveform = np.ones(samples_of(10.0), np.float32)
    chunk, speech = Span(0, len(waveform)), [Span(0, samples_of(4.4)), Span(samples_of(4.6), len(waveform))]
    short, enough = (Transcript("x", tuple(range(n)), -0.1) for n in (14, 15))  # 1.5 tokens a second of 9.8 s: 14.7
    assert halves_with_missing_words(waveform, chunk, speech, short) == (
        Span(0, samples_of(4.5)),
        Span(samples_of(4.5), len(waveform)),
    )
    assert halves_with_missing_words(waveform, chunk, speech, enough) == ()
    assert halves_with_missing_words(waveform, chunk, [Span(0, samples_of(3.9))], short) == ()  # perhaps one word
    assert halves_are_better([short, short], enough) and not halves_are_better([enough], enough)
    assert not halves_are_better([], Transcript("", (), 0.0))


class Hasty(RecordingEngine):
    """Stops after one token in every clip over 6 s."""

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        transcripts = super().transcribe(waveforms, language, decoding)
        too_long = [len(waveform) > samples_of(6.0) for waveform in waveforms]
        return [replace(t, token_ids=(1,)) if stops else t for t, stops in zip(transcripts, too_long, strict=True)]


def test_halves_replace_a_text_that_stops_early(vad: Vad, speech: Path):
    clip = np.concatenate([waveform for waveform, _ in spoken(speech, 16)])[: samples_of(18.0)]
    engine = Hasty()
    raw, served = transcribe_raw_and_served(engine, vad, [clip], "en")
    parts = [engine.clips[int(word.removeprefix("en")) - 1] for word in served[0].text.split()]
    assert raw[0].text == "en1" and len(parts) > 3 and max(map(len, parts)) < samples_of(9.0)
    assert np.array_equal(np.concatenate(parts), clip)


def test_transcripts_are_joined():
    first = Transcript("One two", (1, 2, 3), -0.2, 0.6, True, (" One", " t", "wo"), (0.9, 0.8, 0.7))
    second = Transcript("three", (4,), -0.8, 0.1, False, ("three",), (0.5,))
    whole = join_transcripts([first, Transcript("", (), 0.0, 0.9), second])
    assert (whole.text, whole.token_ids) == ("One two three", (1, 2, 3, 4))
    assert whole.avg_logprob == pytest.approx((4 * -0.2 + 0.0 + 2 * -0.8) / 7)
    assert (whole.no_speech_prob, whole.ended) == (None, False)
    assert "".join(whole.token_texts).strip() == whole.text and whole.token_probs == (0.9, 0.8, 0.7, 0.5)
    japanese = [Transcript(text, (1,), -0.1, token_texts=(text,), language="ja") for text in ("今日は", "晴れ")]
    joined = join_transcripts(japanese)
    assert (joined.text, joined.token_texts, joined.language) == ("今日は晴れ", ("今日は", "晴れ"), "ja")


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
    alone = count_word_errors(references, [normalize(t.text) for t in transcribe_as_served(engine, vad, clips, "en")])
    (transcript,) = transcribe_as_served(engine, vad, [recording], "en")
    whole = count_word_errors([" ".join(references)], [normalize(transcript.text)])
    assert whole.n_reference == alone.n_reference > 100
    assert abs(whole.rate - alone.rate) < 0.05
    assert alone.rate < 0.2
