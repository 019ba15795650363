from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import spoken

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import samples_of
from askd_ray.models.decode_fallback import is_doubtful, is_loop, repeats_itself, transcribe_with_fallback
from askd_ray.models.engine import Engine
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

CLIP_S = 3.0
GOOD = Transcript("Good morning.", (1, 2), -0.2, 0.0)
LONG = Transcript("no " * 100, tuple(range(100)), -0.1, 0.0)  # 33 words a second
REPEATED = Transcript("Busy now. " * 10, tuple(range(30)), -0.1, 0.0)
ONCE_MORE = Transcript("Busy now. " * 11, tuple(range(33)), -0.3, 0.0)
RUNAWAY = Transcript("and so on and", (1,), -0.05, 0.0, ended=False)
GUESS = Transcript("Thanks for watching!", (1,), -1.5, 0.9)
FAINT = Transcript("Perhaps.", (1,), -1.2, 0.1)
BEAM = replace(GREEDY, beam_size=5, no_speech=True)
UNREPEATED = replace(BEAM, no_repeat_ngram_size=3)


class Scripted:
    """Returns the scripted transcript for each try and clip; a clip's samples are its number."""

    def __init__(self, *tries: dict[int, Transcript]):
        self.tries = tries
        self.calls: list[tuple[Decoding, list[int]]] = []

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        assert decoding is not None
        numbers = [int(w[0]) for w in waveforms]
        script = self.tries[len(self.calls)]
        self.calls.append((decoding, numbers))
        return [script[n] for n in numbers]


def clips(n: int) -> list[Waveform]:
    return [np.full(samples_of(CLIP_S), i, np.float32) for i in range(n)]


def test_confident_transcript_is_not_decoded_again():
    engine = Scripted({0: GOOD, 1: GOOD})
    assert transcribe_with_fallback(engine, clips(2), "en", GREEDY) == [GOOD, GOOD]
    assert engine.calls == [(GREEDY, [0, 1])]


def test_doubtful_chunks_are_retried_and_only_loops_forbid_repeated_trigrams():
    tries = {0: LONG, 1: GOOD, 2: RUNAWAY, 3: FAINT, 4: REPEATED}, {0: GOOD, 2: LONG, 3: FAINT, 4: REPEATED}, {2: FAINT}
    engine = Scripted(*tries)
    assert transcribe_with_fallback(engine, clips(5), "en", GREEDY) == [GOOD, GOOD, FAINT, FAINT, REPEATED]
    assert engine.calls == [(GREEDY, [0, 1, 2, 3, 4]), (BEAM, [0, 2, 3, 4]), (UNREPEATED, [2])]


@pytest.mark.parametrize(("first", "second"), [(REPEATED, ONCE_MORE), (ONCE_MORE, REPEATED), (REPEATED, GOOD)])
def test_repetition_is_kept_when_it_is_more_probable(first: Transcript, second: Transcript):
    engine = Scripted({0: first}, {0: second})
    assert transcribe_with_fallback(engine, clips(1), "en", GREEDY) == [REPEATED]


def test_repetition_is_dropped_when_the_model_looped():
    engine = Scripted({0: RUNAWAY}, {0: REPEATED}, {0: GOOD})
    assert transcribe_with_fallback(engine, clips(1), "en", GREEDY) == [GOOD]
    engine = Scripted({0: RUNAWAY}, {0: GOOD})
    assert transcribe_with_fallback(engine, clips(1), "en", GREEDY) == [GOOD]


def test_best_of_the_improbable_transcripts_is_kept():
    fainter = Transcript("Maybe", (1,), -1.4, 0.1)
    for tries in ((fainter, FAINT), (FAINT, fainter)):
        engine = Scripted(*({0: transcript} for transcript in tries))
        assert transcribe_with_fallback(engine, clips(1), "en", GREEDY) == [FAINT]


def test_empty_text_when_improbable_and_no_speech():
    engine = Scripted({0: replace(GUESS, no_speech_prob=None)}, {0: GUESS})
    (transcript,) = transcribe_with_fallback(engine, clips(1), "de", GREEDY)
    assert (transcript.text, transcript.token_ids) == ("", ())


def test_unfinished_transcript_is_kept_when_every_retry_fails():
    engine = Scripted({0: RUNAWAY}, {0: RUNAWAY}, {0: RUNAWAY})
    assert transcribe_with_fallback(engine, clips(1), "en", GREEDY) == [RUNAWAY]


def test_sampling_temperature_disables_retries():
    engine = Scripted({0: LONG})
    assert transcribe_with_fallback(engine, clips(1), "en", Decoding(temperature=0.7)) == [LONG]


@pytest.mark.parametrize(
    ("transcript", "doubtful", "loop"),
    [
        (GOOD, False, False),
        (LONG, True, True),
        (REPEATED, True, False),
        (RUNAWAY, True, True),
        (FAINT, True, False),
        (Transcript("a" * 119, (1,), -0.2, 0.0), True, False),
        (Transcript("a" * 121, (1,), -0.2, 0.0), True, True),
    ],
)
def test_doubt_criteria(transcript: Transcript, doubtful: bool, loop: bool):
    assert (is_doubtful(transcript, CLIP_S), is_loop(transcript, CLIP_S)) == (doubtful, loop)


def repeated(speech: Path, n_times: int) -> list[tuple[Waveform, str]]:
    """Return prompts, each repeated several times with pauses."""
    pause, found = np.zeros(samples_of(0.5), np.float32), list[tuple[Waveform, str]]()
    for waveform, text in spoken(speech, 40):
        if n_times * (duration_s(waveform) + 0.5) <= 20.0:
            found.append((np.concatenate([waveform, pause] * n_times), " ".join([text] * n_times)))
    return found[:6]


@pytest.mark.full
@pytest.mark.slow
def test_repeated_speech_is_transcribed_each_time(weights: Path, speech: Path):
    """With repeated trigrams forbidden, the repetitions had hallucinated words ("All circuits're busy now")."""
    engine, clips = Engine(weights), repeated(speech, 3)
    assert len(clips) == 6
    normalize = normalizer("en")

    def errors(texts: list[str]) -> int:
        return count_word_errors([normalize(text) for _, text in clips], [normalize(text) for text in texts]).errors

    waveforms = [waveform for waveform, _ in clips]
    plain = engine.transcribe(waveforms, "en", GREEDY)
    assert any(repeats_itself(transcript) for transcript in plain)  # else the test would check nothing
    guarded = transcribe_with_fallback(engine, waveforms, "en", GREEDY)
    assert errors([transcript.text for transcript in guarded]) <= errors([transcript.text for transcript in plain])


@pytest.mark.full
@pytest.mark.slow
def test_loop_of_tiny_en_is_cut(weights: Path, speech: Path):
    """At twice its speed, this speech makes tiny.en loop up to the token limit."""
    engine = Engine(weights)
    waveforms = [np.ascontiguousarray(waveform[::2]) for waveform, _ in spoken(speech, 8)]
    plain = engine.transcribe(waveforms, "en", GREEDY)
    assert any(is_loop(transcript, duration_s(w)) for transcript, w in zip(plain, waveforms, strict=True))
    guarded = transcribe_with_fallback(engine, waveforms, "en", GREEDY)
    assert not any(is_loop(transcript, duration_s(w)) for transcript, w in zip(guarded, waveforms, strict=True))
