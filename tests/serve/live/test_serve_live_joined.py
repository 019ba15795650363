"""Joined paths with engines that know what is said: no word is lost, doubled or cut, however the audio arrives."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLES_PER_POSITION
from askd_ray.models.transcript import UnitPath
from askd_ray.serve.live.joined import HOP, LEFT, LONG_PAUSE, MAX_WORD, RIGHT, JoinedPaths, last_pause
from askd_ray.serve.transcription_service import TranscribeOptions

OPTIONS = TranscribeOptions("student")
EURO = "€".encode()
UNITS = [b"", b" the", b" a", b"y", b".", b" ", EURO[:1], EURO[1:]]
BLANKS = [b""] * (LONG_PAUSE + HOP + RIGHT)  # after them, everything before is shown
MAX_POSITIONS = LEFT + MAX_WORD + 2 * HOP + RIGHT  # of a piece


class UnitEngine:
    """Reads audio whose samples are numbers of units, as a model does that needs no context."""

    def __init__(self, language: str = "en"):
        self.language = language
        self.pieces: list[range] = []  # in positions of the turn

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        numbers = piece[::SAMPLES_PER_POSITION].tolist()
        first = int(numbers[0]) // len(UNITS)
        self.pieces.append(range(first, first + len(numbers)))
        return UnitPath(tuple(self.unit(int(number)) for number in numbers), self.language)

    def unit(self, number: int) -> bytes:
        return UNITS[number % len(UNITS)]


class ShortSightedEngine(UnitEngine):
    """Writes words that nobody said wherever it knows too little of the audio around."""

    def unit(self, number: int) -> bytes:
        position, piece = number // len(UNITS), self.pieces[-1]
        knows_left = piece.start == 0 or position - piece.start >= LEFT
        return super().unit(number) if knows_left and piece.stop - position > RIGHT else b" wrong"


def audio_of(units: Sequence[bytes]) -> Waveform:
    """Return audio for the engines: the number of a sample's position and of its unit. Doubles: all are exact."""
    numbers = [position * len(UNITS) + UNITS.index(unit) for position, unit in enumerate(units)]
    return np.repeat(np.array(numbers, np.float64), SAMPLES_PER_POSITION)


def one_pass(units: Sequence[bytes]) -> str:
    return b"".join(unit for unit, _ in groupby(units)).decode("utf-8", "replace")


def shown(engine: UnitEngine, audio: Waveform, ends: Sequence[int]) -> list[str]:
    """Return what is shown of a turn when it has grown up to each of ``ends``, in samples."""

    async def read() -> list[str]:
        captions, texts = JoinedPaths(), [""]
        for end in ends:
            texts.append(texts[-1] + await captions.read(engine, audio[:end], OPTIONS, "turn"))  # type: ignore[arg-type]
        return texts

    return asyncio.run(read())


PATHS = st.lists(st.tuples(st.sampled_from(UNITS), st.integers(1, 30)), max_size=25).map(
    lambda runs: [unit for unit, n in runs for _ in range(n)] + BLANKS
)
ENDS = st.lists(st.floats(0.0, 1.0), max_size=8)


@settings(deadline=None)
@given(units=PATHS, cuts=ENDS, language=st.sampled_from(["en", "ja"]))
def test_joined_text_is_that_of_one_pass(units: list[bytes], cuts: list[float], language: str):
    audio = audio_of(units)
    ends = [*sorted(int(cut * len(audio)) for cut in cuts), len(audio)]
    texts = shown(UnitEngine(language), audio, ends)
    assert texts[-1].rstrip("\ufffd") == one_pass(units).lstrip().rstrip("\ufffd")  # an unfinished character waits
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


@settings(deadline=None)
@given(units=PATHS, cuts=ENDS)
def test_audio_may_arrive_in_any_pieces(units: list[bytes], cuts: list[float]):
    audio, engines = audio_of(units), (UnitEngine(), UnitEngine())
    ends = [*sorted(int(cut * len(audio)) for cut in cuts), len(audio)]
    texts = [shown(engine, audio, pieces) for engine, pieces in zip(engines, (ends, [len(audio)]), strict=True)]
    assert texts[0][-1] == texts[1][-1]
    assert engines[0].pieces == engines[1].pieces


@settings(deadline=None)
@given(units=PATHS)
def test_only_positions_with_context_are_kept(units: list[bytes]):
    audio = audio_of(units)
    assert shown(ShortSightedEngine(), audio, [len(audio)]) == shown(UnitEngine(), audio, [len(audio)])


@pytest.mark.parametrize("units", [[b""], [b" a"], [b" a", b"", b""], [b" a", *[b""] * 40], [b"y", b".", b""]])
def test_audio_is_encoded_a_limited_number_of_times(units: list[bytes]):
    """With words, without any, and with a word that does not end: the length of the turn does not count."""
    engines = []
    for seconds in (20, 60):
        audio = audio_of((units * (50 * seconds))[: 50 * seconds])
        engine = UnitEngine()
        shown(engine, audio, range(0, len(audio), 3200))
        assert max(map(len, engine.pieces)) <= MAX_POSITIONS
        assert len(engine.pieces) <= len(audio) / SAMPLES_PER_POSITION / HOP
        engines.append(engine)
    passes = [Counter(position for piece in engine.pieces for position in piece) for engine in engines]
    assert max(passes[0].values()) == max(passes[1].values()) <= math.ceil(MAX_POSITIONS / HOP)


def test_word_at_the_end_waits_for_what_follows():
    words = [b" the"] * 3 + [b""] * 8 + [b" a"] * 2 + [b""] * 2 + [b"y"] * 8
    audio = audio_of([b""] * (2 * HOP - 18) + words + BLANKS * 2)  # the second piece ends in "y"
    ends = [(n * HOP + RIGHT) * SAMPLES_PER_POSITION for n in (1, 2, 4)]
    assert shown(UnitEngine(), audio, ends) == ["", "", "the", "the ay"]


def test_part_without_a_pause_is_cut():
    units = [b" a", b"y", b"", b"y"] * (2 * MAX_WORD)
    text = shown(UnitEngine(), audio_of(units), [len(units) * SAMPLES_PER_POSITION])[-1]
    assert len(text) > MAX_WORD and f" {text}" == one_pass(units)[: len(text) + 1]
    endless = [b" a", *[b"y", b""] * (2 * MAX_WORD)]
    text = shown(UnitEngine(), audio_of(endless), [len(endless) * SAMPLES_PER_POSITION])[-1]
    assert len(text) >= MAX_WORD // 2 and f" {text}" == one_pass(endless)[: len(text) + 1]


def test_pauses():
    quiet = [b""] * LONG_PAUSE
    assert last_pause([], True) == 0
    assert last_pause([b""] * (LONG_PAUSE - 1), True) == 0
    assert last_pause(quiet, True) == LONG_PAUSE // 2
    assert last_pause([b" a", *quiet], True) == 1 + LONG_PAUSE // 2
    assert last_pause([b" a", b"y", b"", b"", b" a", b"y"], True) == 3
    assert last_pause([b" a", b"y", b" a", b"y"], True) == 2
    assert last_pause([b" a", b" a", b"y"], True) == 0
    assert last_pause([b" a", b"", b" a"], True) == 1  # the same word twice
    assert last_pause([b"a", b"", b"", b"y"], True) == 0
    assert last_pause([b"a", b"", b"", b"y"], False) == 2
    assert last_pause([b"y"] * MAX_WORD, True) == MAX_WORD


def test_end_adds_the_rest_of_the_final_text():
    units = [b" the"] * 2 + [b""] * 2 + [b" a"] * 2 + [b"y"] * 2 + BLANKS
    captions, audio = JoinedPaths(), audio_of(units)
    assert asyncio.run(captions.read(UnitEngine(), audio, OPTIONS, "turn")) == "the ay"  # type: ignore[arg-type]
    assert captions.end("The ay ay.") == " ay."
    assert captions.end("the ay") == captions.end("a theory") == ""
