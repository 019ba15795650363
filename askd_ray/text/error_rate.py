"""Word and character error rates over whole sets: errors are summed over the utterances and then divided."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """Errors against ``n_reference`` words (or characters). Counts of utterances, ranks and shards can be added."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    n_reference: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def errors(self) -> int:
        """The sum of substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word (or character).

        With an empty reference it is infinite if there are errors, so that no limit allows them, and else NaN.
        """
        if self.n_reference:
            return self.errors / self.n_reference
        return math.inf if self.errors else math.nan


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Return the word errors of normalised texts, summed over the utterances."""
    if not references:
        return ErrorCounts()
    out = jiwer.process_words(list(references), list(hypotheses))
    return ErrorCounts(out.substitutions, out.deletions, out.insertions, sum(len(r) for r in out.references))


def count_character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Return the character errors of normalised texts, summed over the utterances."""
    if not references:
        return ErrorCounts()
    out = jiwer.process_characters(list(references), list(hypotheses))
    return ErrorCounts(out.substitutions, out.deletions, out.insertions, sum(len(r) for r in out.references))


def count_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Return the word errors of normalised texts, one count for each utterance."""
    if not references:
        return []
    out = jiwer.process_words(list(references), list(hypotheses))
    return [
        ErrorCounts(
            substitutions=sum(c.ref_end_idx - c.ref_start_idx for c in chunks if c.type == "substitute"),
            deletions=sum(c.ref_end_idx - c.ref_start_idx for c in chunks if c.type == "delete"),
            insertions=sum(c.hyp_end_idx - c.hyp_start_idx for c in chunks if c.type == "insert"),
            n_reference=len(words),
        )
        for words, chunks in zip(out.references, out.alignments, strict=True)
    ]


def right_words(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[bool]]:
    """Return for each word of each hypothesis whether it is right in the alignment with its reference."""
    if not references:
        return []
    out = jiwer.process_words(list(references), list(hypotheses))
    right = [[False] * len(words) for words in out.hypotheses]
    for words, chunks in zip(right, out.alignments, strict=True):
        for chunk in chunks:
            if chunk.type == "equal":
                words[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return right
