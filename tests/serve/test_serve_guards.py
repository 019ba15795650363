from collections.abc import Sequence

import numpy as np
import pytest

from askd_ray.audio.decode import Waveform
from askd_ray.models.engine import GREEDY, Decoding, Transcript
from askd_ray.serve.guards import is_doubtful, transcribe_guarded

GOOD = Transcript("Good morning.", (1, 2), -0.2, 0.0)
LOOP = Transcript("no no no no no no no no no no no no no no no no no no no no no no no no no", (1,), -0.1, 0.0)
RUNAWAY = Transcript("and so on and", (1,), -0.3, 0.0, ended=False)
GUESS = Transcript("Thanks for watching!", (1,), -1.5, 0.9)
FAINT = Transcript("Perhaps.", (1,), -1.2, 0.1)


class Scripted:
    """Says what stands in its script for the try and the clip (clips are their own numbers)."""

    def __init__(self, *tries: dict[int, Transcript]):
        self.tries = tries
        self.asked: list[tuple[Decoding, list[int]]] = []

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        assert decoding is not None
        numbers = [int(w[0]) for w in waveforms]
        said = self.tries[len(self.asked)]
        self.asked.append((decoding, numbers))
        return [said[n] for n in numbers]


def clips(n: int) -> list[Waveform]:
    return [np.full(1, i, np.float32) for i in range(n)]


def test_what_is_good_is_decoded_once():
    engine = Scripted({0: GOOD, 1: GOOD})
    assert transcribe_guarded(engine, clips(2), "en", GREEDY) == [GOOD, GOOD]
    assert engine.asked == [(GREEDY, [0, 1])]


def test_only_the_doubtful_are_decoded_again_in_other_ways():
    engine = Scripted({0: LOOP, 1: GOOD, 2: RUNAWAY}, {0: GOOD, 2: LOOP}, {2: FAINT})
    assert transcribe_guarded(engine, clips(3), "en", GREEDY) == [GOOD, GOOD, FAINT]
    assert [numbers for _, numbers in engine.asked] == [[0, 1, 2], [0, 2], [2]]
    assert [(d.beam_size, d.unrepeated, d.temperature) for d, _ in engine.asked] == [
        (1, 0, 0.0),
        (5, 0, 0.0),
        (5, 3, 0.0),
    ]


def test_the_most_probable_of_the_faint_is_kept():
    fainter = Transcript("Maybe", (1,), -1.4, 0.1)
    engine = Scripted({0: fainter}, {0: FAINT}, {0: fainter})
    assert transcribe_guarded(engine, clips(1), "en", GREEDY) == [FAINT]


def test_a_guess_where_the_model_hears_no_speech_is_silence():
    engine = Scripted({0: GUESS}, {0: GUESS}, {0: GUESS})
    (heard,) = transcribe_guarded(engine, clips(1), "de", GREEDY)
    assert (heard.text, heard.token_ids) == ("", ())


def test_what_cannot_be_ended_is_better_than_nothing():
    engine = Scripted({0: RUNAWAY}, {0: RUNAWAY}, {0: RUNAWAY})
    assert transcribe_guarded(engine, clips(1), "en", GREEDY) == [RUNAWAY]


def test_with_a_temperature_there_is_one_try():
    engine = Scripted({0: LOOP})
    assert transcribe_guarded(engine, clips(1), "en", Decoding(temperature=0.7)) == [LOOP]


@pytest.mark.parametrize(("transcript", "doubtful"), [(GOOD, False), (LOOP, True), (RUNAWAY, True), (FAINT, True)])
def test_doubts(transcript: Transcript, doubtful: bool):
    assert is_doubtful(transcript) == doubtful
