"""The number of tokens that a decoder may write, by what CTC wrote."""

from hypothesis import given
from hypothesis import strategies as st

from askd_ray.models.bound import token_limit
from askd_ray.models.draft import EMPTY, Draft
from askd_ray.text.tokens import max_tokens

LENGTHS, WINDOWS = st.integers(0, 300), st.floats(0.0, 30.0)


def draft_of(length: int) -> Draft:
    return Draft((7,) * length, (0.0,) * length, length)


@given(length=LENGTHS, window_s=WINDOWS)
def test_limit_is_between_the_draft_and_the_window(length: int, window_s: float):
    limit = token_limit(draft_of(length), window_s)
    assert (limit == 0) == (length == 0)
    assert limit <= max_tokens(window_s)
    assert limit >= min(length, max_tokens(window_s))


@given(length=LENGTHS, window_s=WINDOWS, margin=st.floats(1.0, 4.0), slack=st.integers(0, 20))
def test_limit_grows_with_the_draft(length: int, window_s: float, margin: float, slack: int):
    limits = [token_limit(draft_of(n), window_s, margin, slack) for n in (length, length + 1)]
    assert limits[0] <= limits[1]
    assert token_limit(draft_of(length), window_s, margin) <= token_limit(draft_of(length), window_s, margin + 1)


def test_a_long_window_with_few_words_stops_a_runaway():
    assert token_limit(draft_of(4), 30.0) == 14 < max_tokens(30.0)
    assert token_limit(EMPTY, 30.0) == token_limit(Draft((), (), 3), 30.0) == 0
