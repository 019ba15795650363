"""Measure repetitions, the sign of a model that loops."""

import zlib
from collections import Counter


def repeated_ngrams(reference: str, hypothesis: str, n: int = 5) -> int:
    """Count how often word ``n``-grams are repeated in a hypothesis, minus the repetitions in its reference.

    An n-gram that occurs c times is repeated c - 1 times. Repetitions in the reference are subtracted, since speakers
    may repeat themselves. After the 5-gram duplicates of Distil-Whisper (arXiv 2311.00430).
    """
    reference_counts, hypothesis_counts = _counts(reference.split(), n), _counts(hypothesis.split(), n)
    return sum(max(0, (count - 1) - max(0, reference_counts[ngram] - 1)) for ngram, count in hypothesis_counts.items())


def compression_ratio(text: str) -> float:
    """Return a text's compression ratio under zlib, as openai/whisper computes it; repetitive text has a high one."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _counts(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
