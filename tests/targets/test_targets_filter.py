from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.targets import Targets
from askd_ray.data.schema import Utterance
from askd_ray.models.engine import Transcript
from askd_ray.targets.filter import max_repeats_in, why_dropped
from askd_ray.text.ngrams import compression_ratio

TEN = "please leave your name and number after the long tone"
LONG = "She had your dark suit in greasy wash water all year, and more."
LOOP = "and then we went to the station and bought a ticket. " * 9


def said(text: str = "", seconds: float = 2.0, language: str = "en") -> Utterance:
    return Utterance("u", b"", "u", text, seconds, "", language, "d", "train", "")


def heard(text: str, log_prob: float = -0.3, ended: bool = True) -> Transcript:
    return Transcript(text, (), log_prob, 0.0, ended)


def why(utterance: Utterance, transcript: Transcript, **settings: Any) -> str:
    return why_dropped(Targets(kind="pseudo", **settings), utterance, transcript)


# filter: (an utterance and what passes there, and one that just does not)
CASES: dict[str, tuple[tuple[Utterance, Transcript], tuple[Utterance, Transcript]]] = {
    "max_wer": (
        (said(TEN), heard(TEN.replace("leave", "live"))),
        (said(TEN), heard(TEN.replace("leave", "live").replace("tone", "bone"))),
    ),
    "min_mean_log_prob": ((said(), heard("hello there", -1.0)), (said(), heard("hello there", -1.001))),
    "max_compression_ratio": ((said(seconds=20), heard(LOOP[:100])), (said(seconds=20), heard(LOOP))),
    "max_repeats": ((said(), heard("no, no, no, no")), (said(), heard("No no, no no no."))),
    "chars_per_s": ((said(), heard(LONG[:60])), (said(), heard(LONG[:61]))),
    "no end": ((said(), heard("hello there")), (said(), heard("hello there", ended=False))),
}


@pytest.mark.parametrize("name", CASES)
def test_each_filter_at_its_edge(name: str):
    passing, failing = CASES[name]
    assert why(*passing) == ""
    assert why(*failing) == name


@pytest.mark.parametrize("name", [name for name in CASES if name != "no end"])
def test_null_switches_a_filter_off(name: str):
    assert why(*CASES[name][1], **{name: None}) == ""


def test_the_teacher_hears_nothing():
    assert why(said(), heard("")) == "chars_per_s"
    assert why(said("thank you"), heard("")) == "max_wer"


def test_where_there_is_a_reference_only_it_counts():
    utterance = said("no no no no no no no no", seconds=0.1)
    assert why(utterance, heard("no no no no no no no no", log_prob=-5.0)) == ""


def test_errors_are_counted_after_normalisation():
    assert why(said("Mr. Smith has $20."), heard("mister smith has twenty dollars"), max_wer=0.0) == ""


def test_without_spaces_characters_are_the_words():
    reference = "今天天气很好我们去公园"
    one_wrong = heard(reference.replace("好", "坏"))
    assert why(said(reference, language="zh"), one_wrong) == ""  # 1 of 11
    assert why(said(reference, language="zh"), one_wrong, max_wer=0.05) == "max_wer"
    assert why(said(language="zh"), heard("好好好好好")) == "max_repeats"


def test_a_reference_without_words():
    assert why(said("..."), heard("...")) == ""
    assert why(said("..."), heard("thank you")) == "max_wer"


@given(
    phrase=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True),
    times=st.integers(1, 8),
    before=st.lists(st.sampled_from("stuv"), max_size=3, unique=True),
    after=st.lists(st.sampled_from("wxyz"), max_size=3, unique=True),
)
def test_repeats_are_those_of_the_phrase(phrase: list[str], times: int, before: list[str], after: list[str]):
    assert max_repeats_in([*before, *phrase * times, *after]) == times - 1


@pytest.mark.parametrize(
    ("text", "repeats"),
    [("", 0), ("no", 0), ("no no no", 2), ("a b a b c a b", 1), ("one two three four five six " * 3, 0)],
)
def test_repeats_by_hand(text: str, repeats: int):
    assert max_repeats_in(text.split()) == repeats


def test_compression_ratio_is_that_of_whisper():
    """By openai/whisper's own function, ``utils.compression_ratio``: bytes over those of zlib at its default level."""
    assert compression_ratio("") == 0.0
    assert compression_ratio("hello there") == pytest.approx(11 / 19)
    assert compression_ratio(LOOP) > 2.4 > compression_ratio(LOOP[:100])


@given(st.text(max_size=40), st.floats(0.1, 30.0), st.floats(-8.0, 0.0))
def test_whatever_comes_there_is_one_answer(text: str, seconds: float, log_prob: float):
    names = {"", "min_mean_log_prob", "max_compression_ratio", "max_repeats", "chars_per_s"}
    assert why(said(seconds=seconds), heard(text, log_prob)) in names
    assert why(said("a reference", seconds=seconds), heard(text, log_prob)) in {"", "max_wer"}
