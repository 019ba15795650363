import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.text.normalize import normalizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are currently...", "there are currently"),
        ("...for...", "for"),
        ("....", ""),
        ("Pay in $ or EUR", "pay in or eur"),
        ("It costs $3.50, 20 % off.", "it costs $3.50 20 off"),
        ("Twenty-one dollars", "$21"),
        ("Wait... what?", "wait what"),
    ],
)
def test_punctuation_is_not_a_word(text: str, expected: str):
    assert normalizer("en")(text) == expected


@pytest.mark.parametrize("language", ["en", "de", "zh"])
@given(text=st.text(max_size=40) | st.text(alphabet=".$-_% a1", max_size=20))
def test_every_word_has_a_letter_or_a_digit(language: str, text: str):
    words = normalizer(language)(text).split(" ")
    assert words == [""] or all(any(char.isalnum() for char in word) for word in words)


def test_none_keeps_the_text():
    assert normalizer("en", "none")(" As it is ... ") == " As it is ... "
