import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.text.clean import clean, text_problem


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain text.", "plain text."),
        ("\ufeffwith a mark", "with a mark"),
        ("zero\u200bwidth and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("right\u200f to \u202eleft\u202c", "right to left"),
        ("tab\tbell\x07null\x00end \n", "tab bell null end"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("\u200b\ufeff", ""),
        ("e\u200b\u0301", "\u00e9"),
    ],
)
def test_invisible_characters_are_removed(raw: str, expected: str):
    assert clean(raw) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("...", "text without words"),
        ("?!", "text without words"),
        ("<unk>", "markup in the text"),
        ("well <unk> then", "markup in the text"),
        ("<beep ascending>", "markup in the text"),
        ("rock &amp; roll", "markup in the text"),
        ("it&#39;s", "markup in the text"),
        ("caf\ufffd", "damaged text"),
        ("half a pair \ud83d", "damaged text"),
    ],
)
def test_useless_texts_are_refused(text: str, reason: str):
    problem = text_problem(text)
    assert problem is not None and problem[0] == reason


@pytest.mark.parametrize("text", ["", "A & B;", "AT&T", "3 < 4 > 2", "5", "\u4f60\u597d", "\u0939\u093f\u0928\u094d"])
def test_good_texts_pass(text: str):
    assert text_problem(text) is None


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str):
    once = clean(text)
    assert clean(once) == once and unicodedata.is_normalized("NFC", once)
    letters = [[c for c in unicodedata.normalize("NFD", t) if c.isalnum()] for t in (once, text)]
    assert letters[0] == letters[1]
