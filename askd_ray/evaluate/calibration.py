"""Whether a model is as often right as it is sure: token confidence against the words that came out right."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from askd_ray.evaluate.hypotheses import Hypothesis
from askd_ray.text.error_rate import right_words
from askd_ray.text.normalize import normalizer

N_BINS = 10


class Bin(TypedDict):
    """Tokens whose probability is in [low, high) (1.0 in the last): their number, mean probability, share right."""

    low: float
    high: float
    tokens: int
    confidence: float
    accuracy: float


def reliability(rows: Sequence[Hypothesis]) -> list[Bin]:
    """Return the reliability diagram of all tokens with a probability: :data:`N_BINS` equal bins without empty ones.

    A token is right when its word is: words are what white space parts, each is normalised by itself (lower case, no
    punctuation), and they are aligned with the reference's. So a number that is written otherwise than in the reference
    is wrong here, by every model. Tokens of no word (a space, a lone dash) do not count.
    """
    told = [row for row in rows if row.token_texts is not None and row.token_probs is not None]
    probs, right = list[float](), list[bool]()
    references = [" ".join(filter(None, map(_plain, row.reference.split()))) for row in told]
    heard = [[_plain(word) for word in "".join(row.token_texts or ()).split()] for row in told]
    aligned = right_words(references, [" ".join(filter(None, words)) for words in heard])
    for row, words, ok in zip(told, heard, aligned, strict=True):
        verdicts = iter(ok)
        right_of = [next(verdicts) if word else None for word in words]
        for word, prob in zip(_word_of_tokens(row.token_texts or ()), row.token_probs or (), strict=True):
            verdict = None if word is None else right_of[word]
            if verdict is not None:
                probs.append(prob)
                right.append(verdict)
    return _bins(np.asarray(probs, dtype=np.float64), np.asarray(right, dtype=np.bool_))


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Return the ECE: |accuracy - confidence| of the bins, weighted by tokens (Guo et al., ICML 2017, equation 3).

    None where there is no token.
    """
    n = sum(b["tokens"] for b in bins)
    return sum(b["tokens"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / n if n else None


@lru_cache(maxsize=100_000)  # the same words come again and again
def _plain(word: str) -> str:
    """Return a word without case and punctuation, in one piece, empty where nothing is left."""
    return "".join(normalizer("", "basic")(word).split())


def _word_of_tokens(token_texts: Sequence[str]) -> list[int | None]:
    """Return which word of the joined text each token begins or goes on with; None for white space alone."""
    word, inside, found = -1, False, list[int | None]()
    for text in token_texts:
        first = None
        for character in text:
            word += not inside and not character.isspace()
            inside = not character.isspace()
            if inside and first is None:
                first = word
        found.append(first)
    return found


def _bins(probs: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    which = np.minimum((probs * N_BINS).astype(int), N_BINS - 1)
    return [
        {
            "low": b / N_BINS,
            "high": (b + 1) / N_BINS,
            "tokens": int((which == b).sum()),
            "confidence": float(probs[which == b].mean()),
            "accuracy": float(right[which == b].mean()),
        }
        for b in sorted(set(which.tolist()))
    ]
