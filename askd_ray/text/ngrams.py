"""Repetitions: what a recogniser that loops leaves in its texts."""

import zlib
from collections import Counter


def repeated_ngrams(reference: str, hypothesis: str, n: int = 5) -> int:
    """Return how often word ``n``-grams are repeated in a hypothesis beyond what its reference repeats.

    An n-gram that occurs c times is repeated c - 1 times; what the reference repeats of the same n-gram is taken off:
    speakers may repeat themselves. After the 5-gram duplicates of Distil-Whisper (arXiv 2311.00430).
    """
    said, heard = _counts(reference.split(), n), _counts(hypothesis.split(), n)
    return sum(max(0, (count - 1) - max(0, said[ngram] - 1)) for ngram, count in heard.items())


def compression_ratio(text: str) -> float:
    """Return how many times a text shrinks under zlib, as openai/whisper counts it; text in loops shrinks a lot."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _counts(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
