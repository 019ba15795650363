"""Word and character error rates with their counts, over whole sets: errors are summed before they are divided."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """Errors against ``n_reference`` words (or characters). Counts add up over utterances, ranks and shards."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    n_reference: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors a reference word; not a number where there is no reference."""
        return self.errors / self.n_reference if self.n_reference else float("nan")


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
