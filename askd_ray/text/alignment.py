"""Align a reference and a hypothesis word by word."""

from dataclasses import dataclass
from itertools import zip_longest

import jiwer


@dataclass(frozen=True)
class AlignedWord:
    """A word of the reference and its word in the hypothesis. An empty one means a deletion or an insertion."""

    reference: str
    hypothesis: str

    @property
    def is_right(self) -> bool:
        """Whether both words are the same."""
        return self.reference == self.hypothesis


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """Align two normalised texts with the fewest errors; if several alignments have as few, return one of them.

    The number of words that are not right equals the number of errors in :mod:`askd_ray.text.error_rate`.
    """
    out = jiwer.process_words(reference, hypothesis)
    reference_words, hypothesis_words = out.references[0], out.hypotheses[0]
    return [
        AlignedWord(*pair)
        for chunk in out.alignments[0]
        for pair in zip_longest(
            reference_words[chunk.ref_start_idx : chunk.ref_end_idx],
            hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx],
            fillvalue="",
        )
    ]
