import math

import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.text.error_rate import ErrorCounts, count_character_errors, count_each, count_word_errors, right_words
from askd_ray.text.normalize import normalizer


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("a b c", "a b c", ErrorCounts(0, 0, 0, 3)),
        ("a b c", "a x c", ErrorCounts(1, 0, 0, 3)),
        ("a b c", "a c", ErrorCounts(0, 1, 0, 3)),
        ("a b c", "a b b c", ErrorCounts(0, 0, 1, 3)),
        ("a b c", "", ErrorCounts(0, 3, 0, 3)),
        ("", "a b", ErrorCounts(0, 0, 2, 0)),
        ("a b c d e f", "x b d e f g", ErrorCounts(1, 1, 1, 6)),
    ],
)
def test_word_errors(reference, hypothesis, counts):
    assert count_word_errors([reference], [hypothesis]) == counts


def test_character_errors_count_characters():
    assert count_character_errors(["abcd"], ["abxd"]) == ErrorCounts(1, 0, 0, 4)


def test_rate_is_the_sum_of_errors_over_words():
    counts = count_word_errors(["a", "b c d"], ["x", "b c d"])
    assert counts.errors == 1
    assert counts.rate == 0.25  # the mean of the utterances' rates would be 0.5


@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_no_limit_allows_words_against_an_empty_reference(hypotheses):
    assert count_word_errors([""] * len(hypotheses), hypotheses).rate == math.inf


def test_no_utterances_have_no_rate():
    assert count_word_errors([], []) == ErrorCounts()
    assert count_character_errors([], []) == ErrorCounts()
    assert math.isnan(ErrorCounts().rate)


_texts = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(_texts, _texts), max_size=6))
def test_counts_add_up_over_parts(pairs):
    parts = sum((count_word_errors([r], [h]) for r, h in pairs), ErrorCounts())
    assert count_word_errors([r for r, _ in pairs], [h for _, h in pairs]) == parts


@given(st.lists(st.tuples(_texts, _texts), max_size=6))
def test_counts_equal_jiwer_and_kaldialign(pairs):
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    each = count_each(references, hypotheses)
    assert sum(each, ErrorCounts()) == count_word_errors(references, hypotheses)
    # Which of several best alignments is taken, and so how errors are called, is free; how many they are is not.
    for (reference, hypothesis), counts in zip(pairs, each, strict=True):
        other = kaldialign.edit_distance(reference.split(), hypothesis.split())
        assert (counts.errors, counts.n_reference) == (other["total"], other["ref_len"])
        assert counts.insertions - counts.deletions == other["ins"] - other["del"]


def test_correct_words():
    assert right_words(["a b c d", "", "a"], ["a x c d e", "y", ""]) == [[True, False, True, True, False], [False], []]
    assert right_words([], []) == []


@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=6))
def test_correct_words_are_words_without_an_error(pairs):
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    right = right_words(references, hypotheses)
    for counts, words, hypothesis in zip(count_each(references, hypotheses), right, hypotheses, strict=True):
        assert len(words) == len(hypothesis.split())
        assert words.count(False) == counts.substitutions + counts.insertions


@pytest.mark.parametrize(
    ("language", "text", "normalised"),
    [("en", "Mr. Smith, it's TWENTY-one!", "mister smith it is 21"), ("de", "Grüße, Welt!", "grüße welt")],
)
def test_normaliser_is_chosen_by_language(language, text, normalised):
    assert normalizer(language)(text) == normalised


def test_normaliser_kinds():
    assert normalizer("en", "basic")("Mr. Smith, it's TWENTY-one!") == "mr smith it s twenty one"
    assert normalizer("en", "none")("Mr. Smith ") == "Mr. Smith "
    assert normalizer("de", "whisper")("Grüße!") == normalizer("de", "basic")("Grüße!") == "grüße"
