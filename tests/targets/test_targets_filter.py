from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.targets import Targets
from askd_ray.data.schema import Utterance
from askd_ray.models.transcript import Transcript
from askd_ray.targets.filter import failed_filter, matching_part, max_repeats_in
from askd_ray.text.ngrams import compression_ratio

TEN = "please leave your name and number after the long tone"
LONG = "She had your dark suit in greasy wash water all year, and more."
LOOP = "and then we went to the station and bought a ticket. " * 9


def make_utterance(text: str = "", seconds: float = 2.0, language: str = "en") -> Utterance:
    return Utterance("u", b"", "u", text, seconds, "", language, "d", "train", "")


def make_transcript(text: str, log_prob: float = -0.3, ended: bool = True) -> Transcript:
    return Transcript(text, (), log_prob, 0.0, ended)


def why(utterance: Utterance, transcript: Transcript, **settings: Any) -> str:
    return failed_filter(Targets(kind="pseudo", **settings), utterance, transcript)


# filter: (an utterance with a transcript that just passes, and one that just fails)
CASES: dict[str, tuple[tuple[Utterance, Transcript], tuple[Utterance, Transcript]]] = {
    "max_wer": (
        (make_utterance(TEN), make_transcript(TEN.replace("leave", "live"))),
        (make_utterance(TEN), make_transcript(TEN.replace("leave", "live").replace("tone", "bone"))),
    ),
    "min_mean_log_prob": (
        (make_utterance(), make_transcript("hello there", -1.0)),
        (make_utterance(), make_transcript("hello there", -1.001)),
    ),
    "max_compression_ratio": (
        (make_utterance(seconds=20), make_transcript(LOOP[:100])),
        (make_utterance(seconds=20), make_transcript(LOOP)),
    ),
    "max_repeats": (
        (make_utterance(), make_transcript("no, no, no, no")),
        (make_utterance(), make_transcript("No no, no no no.")),
    ),
    "chars_per_s": ((make_utterance(), make_transcript(LONG[:60])), (make_utterance(), make_transcript(LONG[:61]))),
    "no end": (
        (make_utterance(), make_transcript("hello there")),
        (make_utterance(), make_transcript("hello there", ended=False)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_filter_at_the_limit(name: str):
    passing, failing = CASES[name]
    assert why(*passing) == ""
    assert why(*failing) == name


@pytest.mark.parametrize("name", [name for name in CASES if name != "no end"])
def test_null_disables_a_filter(name: str):
    assert why(*CASES[name][1], **{name: None}) == ""


def test_empty_transcript_is_left_out():
    assert why(make_utterance(), make_transcript("")) == "chars_per_s"
    assert why(make_utterance("thank you"), make_transcript("")) == "max_wer"


def test_reference_replaces_other_filters():
    utterance = make_utterance("no no no no no no no no", seconds=0.1)
    assert why(utterance, make_transcript("no no no no no no no no", log_prob=-5.0)) == ""


def test_errors_are_counted_after_normalisation():
    assert (
        why(make_utterance("Mr. Smith has $20."), make_transcript("mister smith has twenty dollars"), max_wer=0.0) == ""
    )


def test_languages_without_spaces_use_characters():
    reference = "今天天气很好我们去公园"
    one_wrong = make_transcript(reference.replace("好", "坏"))
    assert why(make_utterance(reference, language="zh"), one_wrong) == ""  # 1 of 11
    assert why(make_utterance(reference, language="zh"), one_wrong, max_wer=0.05) == "max_wer"
    assert why(make_utterance(language="zh"), make_transcript("好好好好好")) == "max_repeats"


def test_reference_without_words():
    assert why(make_utterance("..."), make_transcript("...")) == ""
    assert why(make_utterance("..."), make_transcript("thank you")) == "max_wer"


@given(
    phrase=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True),
    times=st.integers(1, 8),
    before=st.lists(st.sampled_from("stuv"), max_size=3, unique=True),
    after=st.lists(st.sampled_from("wxyz"), max_size=3, unique=True),
)
def test_repeats_of_a_phrase(phrase: list[str], times: int, before: list[str], after: list[str]):
    assert max_repeats_in([*before, *phrase * times, *after]) == times - 1


@pytest.mark.parametrize(
    ("text", "repeats"),
    [("", 0), ("no", 0), ("no no no", 2), ("a b a b c a b", 1), ("one two three four five six " * 3, 0)],
)
def test_repeats_of_known_cases(text: str, repeats: int):
    assert max_repeats_in(text.split()) == repeats


def test_compression_ratio_equals_whisper():
    """As openai/whisper's ``utils.compression_ratio``: bytes divided by zlib's bytes at its default level."""
    assert compression_ratio("") == 0.0
    assert compression_ratio("hello there") == pytest.approx(11 / 19)
    assert compression_ratio(LOOP) > 2.4 > compression_ratio(LOOP[:100])


@given(st.text(max_size=40), st.floats(0.1, 30.0), st.floats(-8.0, 0.0))
def test_any_transcript_has_one_decision(text: str, seconds: float, log_prob: float):
    names = {"", "min_mean_log_prob", "max_compression_ratio", "max_repeats", "chars_per_s"}
    assert why(make_utterance(seconds=seconds), make_transcript(text, log_prob)) in names
    assert why(make_utterance("a reference", seconds=seconds), make_transcript(text, log_prob)) in {"", "max_wer"}


@pytest.mark.parametrize(
    ("reference", "transcript", "expected"),
    [
        ("Please press Four, now.", "press four", "press Four,"),
        ("Please press Four, now.", " Press four. Now!", "press Four, now."),
        ("Please press Four, now.", "please press for", ""),
        ("Please press Four, now.", "please now", ""),  # not one after the other
        ("one two one two three", "one two three", "one two three"),
        ("yes - no", "yes no", "yes no"),
        ("Enter six two", " 6, 2.", "six two"),
        ("anything", "", ""),
        ("", "anything", ""),
    ],
)
def test_part_of_a_reference(reference: str, transcript: str, expected: str):
    assert matching_part(reference, transcript, "en") == expected


def test_part_of_a_reference_without_spaces():
    assert matching_part("今天天气很好。", "天气很", "zh") == "天气很"


@given(words=st.lists(st.sampled_from(["one", "Two,", "three.", "FOUR"]), min_size=1, max_size=8), ends=st.data())
def test_every_part_of_a_reference_is_found(words: list[str], ends: st.DataObject):
    first = ends.draw(st.integers(0, len(words) - 1))
    last = ends.draw(st.integers(first + 1, len(words)))
    part = " ".join(words[first:last])
    found = matching_part(" ".join(words), part.upper(), "en")
    assert found.lower() == part.lower()
