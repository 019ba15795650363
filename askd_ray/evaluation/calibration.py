"""Calibration: compares the confidence of tokens with the share of tokens whose word is correct."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from askd_ray.evaluation.hypotheses import Hypothesis
from askd_ray.results.wer import Bin
from askd_ray.text.error_rate import right_words
from askd_ray.text.normalize import normalizer

N_BINS = 10


def reliability(rows: Sequence[Hypothesis]) -> list[Bin]:
    """Return the reliability diagram of all tokens with a probability: :data:`N_BINS` equal bins without empty ones.

    A token is correct when its word is correct. White space separates words. Each word is normalised separately (lower
    case, no punctuation), and the words are aligned with those of the reference. So a number that the reference
    writes in another way counts as wrong, for every model. Tokens without a word (a space, a lone dash) do not count.
    """
    with_probs = [row for row in rows if row.token_texts is not None and row.token_probs is not None]
    probs, correct = list[float](), list[bool]()
    references = [" ".join(filter(None, map(_plain, row.reference.split()))) for row in with_probs]
    hypotheses = [[_plain(word) for word in "".join(row.token_texts or ()).split()] for row in with_probs]
    aligned = right_words(references, [" ".join(filter(None, words)) for words in hypotheses])
    for row, words, correct_words in zip(with_probs, hypotheses, aligned, strict=True):
        verdicts = iter(correct_words)
        word_verdicts = [next(verdicts) if word else None for word in words]
        for word, prob in zip(_word_of_tokens(row.token_texts or ()), row.token_probs or (), strict=True):
            verdict = None if word is None else word_verdicts[word]
            if verdict is not None:
                probs.append(prob)
                correct.append(verdict)
    return _bins(np.asarray(probs, dtype=np.float64), np.asarray(correct, dtype=np.bool_))


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Return the ECE: |accuracy - confidence| of the bins, weighted by tokens (Guo et al., ICML 2017, equation 3).

    Returns None without tokens.
    """
    n = sum(b["tokens"] for b in bins)
    return sum(b["tokens"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / n if n else None


@lru_cache(maxsize=100_000)  # most words occur many times
def _plain(word: str) -> str:
    """Return a word in lower case, without punctuation and spaces; the result may be empty."""
    return "".join(normalizer("", "basic")(word).split())


def _word_of_tokens(token_texts: Sequence[str]) -> list[int | None]:
    """Return for each token the number of its first word in the joined text; None for white space alone."""
    word, inside, numbers = -1, False, list[int | None]()
    for text in token_texts:
        first = None
        for character in text:
            word += not inside and not character.isspace()
            inside = not character.isspace()
            if inside and first is None:
                first = word
        numbers.append(first)
    return numbers


def _bins(probs: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[Bin]:
    bins = np.minimum((probs * N_BINS).astype(int), N_BINS - 1)
    return [
        {
            "low": b / N_BINS,
            "high": (b + 1) / N_BINS,
            "tokens": int((bins == b).sum()),
            "confidence": float(probs[bins == b].mean()),
            "accuracy": float(correct[bins == b].mean()),
        }
        for b in sorted(set(bins.tolist()))
    ]
