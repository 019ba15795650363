import pytest

from askd_ray.text.ngrams import repeated_ngrams

FIVE = "a b c d e"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "repeated"),
    [
        (FIVE, FIVE, 0),
        (FIVE, f"{FIVE} {FIVE}", 1),  # 6 grams, abcde twice
        (f"{FIVE} {FIVE}", f"{FIVE} {FIVE}", 0),  # it was said twice
        (f"{FIVE} {FIVE}", f"{FIVE} {FIVE} {FIVE}", 5),  # abcde once more; four that run over the seam come again
        ("", "x x x x x x x", 2),  # three times xxxxx
        ("x x x x x x x", FIVE, 0),  # what is not heard is no credit
        ("", "a b c d", 0),
    ],
)
def test_repeated_five_grams(reference: str, hypothesis: str, repeated: int):
    assert repeated_ngrams(reference, hypothesis) == repeated


def test_other_n_gram_lengths():
    assert repeated_ngrams("", "a b a b a b", n=2) == 3  # ab three times, ba twice
