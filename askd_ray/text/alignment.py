"""One reference and one hypothesis, word beside word."""

from dataclasses import dataclass
from itertools import zip_longest

import jiwer


@dataclass(frozen=True)
class AlignedWord:
    """A word of the reference and the word that was heard for it. Empty: deleted, or inserted."""

    said: str
    heard: str

    @property
    def is_right(self) -> bool:
        """Whether the word was heard as it was said."""
        return self.said == self.heard


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """Align two normalised texts with the fewest errors; there may be several such alignments, and this is one.

    The words that are not right are as many as the errors that :mod:`askd_ray.text.error_rate` counts.
    """
    out = jiwer.process_words(reference, hypothesis)
    said, heard = out.references[0], out.hypotheses[0]
    return [
        AlignedWord(*pair)
        for chunk in out.alignments[0]
        for pair in zip_longest(
            said[chunk.ref_start_idx : chunk.ref_end_idx],
            heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
            fillvalue="",
        )
    ]
