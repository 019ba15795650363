"""The engine of CTC students against torch, on real clips."""

import math
import threading
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from ctc_student import WINDOW, known_clips

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, SAMPLES_PER_POSITION, samples_of
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.ctc import load_ctc
from askd_ray.models.ctc_decoding import greedy_classes, sequence_log_probs
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.decode_fallback import transcribe_with_fallback
from askd_ray.models.transcript import Decoding
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Waveform]:
    return [waveform_of(clip) for clip in known_clips(speech)]


@pytest.fixture(scope="module")
def engine(ctc_onnx: dict[str, Path]) -> CtcEngine:
    return CtcEngine(ctc_onnx["float32"], threads=1, window=WINDOW)


def test_no_clips(engine: CtcEngine):
    assert engine.transcribe([]) == []


def test_transcripts_are_those_of_torch(engine: CtcEngine, ctc_student: Path, clips: list[Waveform]):
    model, tokens = load_ctc(ctc_student)
    transcripts = engine.transcribe(clips, decoding=Decoding(confidence=True, no_speech=True))
    for clip, transcript in zip(clips, transcripts, strict=True):
        with torch.no_grad():
            log_probs = model(log_mel_windows([clip], [WINDOW.samples(len(clip), 80)]))[0].numpy()
        classes = greedy_classes(log_probs)
        ids = model.head.vocabulary.tokens(classes)
        assert (list(transcript.token_ids), transcript.text) == (ids, tokens.decode(ids))
        expected = sequence_log_probs(log_probs, [classes])[0] / (len(ids) + 1)
        assert transcript.avg_logprob == pytest.approx(expected, abs=1e-3)
        assert transcript.no_speech_prob == pytest.approx(math.exp(log_probs[:, 0].sum()), abs=1e-4)
        assert "".join(transcript.token_texts).strip() == transcript.text
        assert transcript.token_probs == pytest.approx([math.exp(p) for p in _greatest(log_probs)], abs=1e-3)
        times = transcript.token_times
        assert len(times) == len(ids) + 1 and list(times) == sorted(set(times))
        assert times[-1] <= WINDOW.samples(len(clip), 80) / SAMPLE_RATE_HZ


def _greatest(log_probs: np.ndarray) -> list[float]:
    """Return the greatest log-probability of each token of the greedy path."""
    runs: list[list[float]] = []
    before = 0
    for c, log_prob in zip(log_probs.argmax(-1).tolist(), log_probs.max(-1).tolist(), strict=True):
        if c and c != before:
            runs.append([])
        if c:
            runs[-1].append(log_prob)
        before = c
    return [max(run) for run in runs]


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_words_of_the_clips(ctc_onnx: dict[str, Path], quantization: str, speech: Path, clips: list[Waveform]):
    transcripts = CtcEngine(ctc_onnx[quantization], threads=1, window=WINDOW).transcribe(clips)
    normalize = normalizer("en")
    references = [normalize(clip.text) for clip in known_clips(speech)]
    assert count_word_errors(references, [normalize(t.text) for t in transcripts]).rate < 0.15
    assert all(-1.0 < t.avg_logprob < 0.0 and t.ended for t in transcripts)


def test_folder_of_the_student_in_torch(engine: CtcEngine, ctc_student: Path, clips: list[Waveform]):
    in_torch = CtcEngine(ctc_student, window=WINDOW).transcribe(clips[:3])
    assert [t.text for t in in_torch] == [t.text for t in engine.transcribe(clips[:3])]


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_text_is_independent_of_the_other_clips(ctc_onnx: dict[str, Path], quantization: str, clips: list[Waveform]):
    engine = CtcEngine(ctc_onnx[quantization], threads=1, window=WINDOW)
    same = [np.pad(clip, (0, 4 * SAMPLE_RATE_HZ - len(clip))) for clip in clips[:4]]
    mixed = [same[0], clips[5], *same[1:], clips[4]]
    assert engine.transcribe(mixed) == [engine.transcribe([clip])[0] for clip in mixed]


def test_parallel_calls_give_the_same_transcripts(engine: CtcEngine, clips: list[Waveform]):
    expected, found = engine.transcribe(clips), dict[int, object]()
    threads = [threading.Thread(target=lambda i=i: found.setdefault(i, engine.transcribe(clips))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == [expected] * 3


def test_beam_is_at_least_as_probable(engine: CtcEngine, clips: list[Waveform]):
    noisy = [clip + np.random.default_rng(0).normal(0, 0.1, len(clip)).astype(np.float32) for clip in clips[:4]]
    greedy = engine.transcribe(noisy)
    beam = engine.transcribe(noisy, decoding=Decoding(beam_size=5, confidence=True))
    for g, b in zip(greedy, beam, strict=True):
        assert b.avg_logprob * (len(b.token_ids) + 1) >= g.avg_logprob * (len(g.token_ids) + 1) - 1e-5
        assert len(b.token_times) == len(b.token_ids) + 1


def test_doubtful_clips_are_decoded_again(engine: CtcEngine, clips: list[Waveform]):
    """The service's path, with every option that it may set: beam, no repeated trigrams, no speech."""
    noise = np.random.default_rng(1).normal(0, 0.3, 3 * SAMPLE_RATE_HZ).astype(np.float32)
    transcripts = transcribe_with_fallback(engine, [noise, clips[0]], "en", Decoding(confidence=True))
    assert transcripts[1] == engine.transcribe(clips[:1], decoding=Decoding(confidence=True))[0]
    repeated = engine.transcribe(clips[:1], decoding=Decoding(beam_size=5, no_repeat_ngram_size=3, no_speech=True))
    assert repeated[0].text == transcripts[1].text


def test_paths_write_the_texts(engine: CtcEngine, clips: list[Waveform]):
    paths = engine.read_paths(clips)
    for clip, path, transcript in zip(clips, paths, engine.transcribe(clips), strict=True):
        assert len(path.units) == len(clip) // SAMPLES_PER_POSITION and path.language == "en"
        text = b"".join(unit for unit, _ in groupby(path.units)).decode()
        assert transcript.text.startswith(text.strip())  # the window has some silence after the clip
    assert engine.path_reader is engine and engine.read_paths(clips[3:4]) == paths[3:4]
    with pytest.raises(AskdError, match="language 'fr': this student was trained for en only"):
        engine.read_paths(clips, "fr")
    with pytest.raises(AskdError, match="clip 0 is"):
        engine.read_paths([np.zeros(31 * SAMPLE_RATE_HZ, np.float32)])


def test_empty_text_has_one_time(engine: CtcEngine):
    """As with a decoder: the end of the last token, here of none."""
    sure = Decoding(confidence=True, no_speech=True)
    (empty,) = engine.transcribe([np.zeros(0, np.float32)], decoding=sure)
    assert (empty.text, empty.token_probs, empty.token_times) == ("", (), (0.0,))
    assert empty.no_speech_prob is not None and 0.0 < empty.no_speech_prob <= 1.0
    assert empty.avg_logprob == pytest.approx(math.log(empty.no_speech_prob))  # both are that of the empty text


def test_windows(engine: CtcEngine, ctc_onnx: dict[str, Path], clips: list[Waveform]):
    clip = clips[0]
    assert engine.window_samples(clip) == WINDOW.samples(len(clip), 80)
    padded = CtcEngine(ctc_onnx["float32"], threads=1)
    assert padded.window_samples(clip) == PADDED_SAMPLES
    assert padded.transcribe([clip[: samples_of(1.0)]])[0].ended
    with pytest.raises(AskdError, match=r"clip 1 is 31\.0 s long: at most 30 s"):
        engine.transcribe([clip, np.zeros(31 * SAMPLE_RATE_HZ, np.float32)])


def test_prompt_has_no_effect(engine: CtcEngine, clips: list[Waveform]):
    assert engine.fit_prompt("Names: Ada, Grace") == ""
    assert engine.transcribe(clips[:1], decoding=Decoding(prompt="Ada")) == engine.transcribe(clips[:1])


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(task="translate"), "task 'translate': a CTC student cannot translate"),
        (Decoding(temperature=0.2), r"temperature 0\.2: a CTC student does not sample"),
        (Decoding(timestamps=True), "a CTC student writes no timestamp tokens"),
    ],
)
def test_what_ctc_cannot_do_is_refused(engine: CtcEngine, clips: list[Waveform], decoding: Decoding, message: str):
    with pytest.raises(AskdError, match=message):
        engine.transcribe(clips[:1], decoding=decoding)


def test_languages(engine: CtcEngine, ctc_onnx: dict[str, Path], clips: list[Waveform]):
    assert engine.languages == ("en",)
    (transcript,) = engine.transcribe(clips[:1], language=None)
    assert transcript == replace(engine.transcribe(clips[:1])[0], language="en")
    with pytest.raises(AskdError, match="language 'fr': this student was trained for en only"):
        engine.transcribe(clips[:1], language="fr")
    several = CtcEngine(ctc_onnx["float32"], threads=1, window=WINDOW, languages=("de", "en"))
    assert several.transcribe(clips[:1], "de")[0].language == "de"
    with pytest.raises(AskdError, match="does not detect the language: give one of de, en"):
        several.transcribe(clips[:1], language=None)
