import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.text.alignment import AlignedWord, align_words
from askd_ray.text.error_rate import count_word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", [("a", "a"), ("b", "b"), ("c", "c")]),
        ("a b c", "a x c", [("a", "a"), ("b", "x"), ("c", "c")]),
        ("a b c", "a c", [("a", "a"), ("b", ""), ("c", "c")]),
        ("a c", "a b c", [("a", "a"), ("", "b"), ("c", "c")]),
        ("a b", "", [("a", ""), ("b", "")]),
        ("", "a b", [("", "a"), ("", "b")]),
        ("", "", []),
    ],
)
def test_known_alignments(reference: str, hypothesis: str, expected: list[tuple[str, str]]):
    aligned = align_words(reference, hypothesis)
    assert aligned == [AlignedWord(*pair) for pair in expected]
    assert [word.is_right for word in aligned] == [
        reference_word == hypothesis_word for reference_word, hypothesis_word in expected
    ]


TEXTS = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(TEXTS, TEXTS)
def test_alignment_keeps_all_words_and_the_scored_errors(reference: str, hypothesis: str):
    aligned = align_words(reference, hypothesis)
    assert " ".join(word.reference for word in aligned if word.reference) == reference
    assert " ".join(word.hypothesis for word in aligned if word.hypothesis) == hypothesis
    assert sum(not word.is_right for word in aligned) == count_word_errors([reference], [hypothesis]).errors
