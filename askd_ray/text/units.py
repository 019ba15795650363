"""The units that a CTC head writes.

Class 0 is CTC's blank; every other class is a unit: a token of Whisper's vocabulary, often a byte. Longer tokens are
divided into units, so Whisper's soft labels teach the head, and a Whisper tokenizer decodes what it writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from askd_ray.text.tokens import Tokens

BLANK = 0
_N_BYTES = 256  # the first tokens of Whisper's vocabularies are the bytes, of which any text can be written


@dataclass(frozen=True)
class CtcVocabulary:
    """The units that a head can write, as tokens of Whisper; class ``i + 1`` is the token ``token_ids[i]``."""

    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, used: Sequence[int]) -> "CtcVocabulary":
        """Return the vocabulary of some tokens, and of all bytes."""
        return cls(tuple(sorted({*range(_N_BYTES), *used})))

    @property
    def n_classes(self) -> int:
        """The number of units and the blank."""
        return len(self.token_ids) + 1

    def tokens(self, classes: Sequence[int]) -> list[int]:
        """Return the tokens of classes that are not blank."""
        return [self.token_ids[c - 1] for c in classes]


class Segmenter:
    """Divides Whisper's tokens into the units of a vocabulary: the longest unit first, from left to right.

    ``first`` (n_vocab,) has the class of each token's first unit; the blank for special tokens.
    """

    def __init__(self, vocabulary: CtcVocabulary, tokens: Tokens, n_vocab: int):
        self._pieces = [str(tokens.tokenizer.id_to_token(i)) if i < tokens.end else "" for i in range(n_vocab)]
        self._class_of = {self._pieces[token]: c for c, token in enumerate(vocabulary.token_ids, start=1)}
        self._longest = max(map(len, self._class_of))
        self.first = [self._prefix(piece)[0] if piece else BLANK for piece in self._pieces]

    def classes(self, token: int) -> tuple[int, ...]:
        """Return the classes of a token's units."""
        classes, piece = list[int](), self._pieces[token]
        while piece:
            found, length = self._prefix(piece)
            classes.append(found)
            piece = piece[length:]
        return tuple(classes)

    def _prefix(self, piece: str) -> tuple[int, int]:
        """Return the class and the length of the longest unit with which a token begins."""
        lengths = range(min(len(piece), self._longest), 0, -1)
        return next((self._class_of[piece[:n]], n) for n in lengths if piece[:n] in self._class_of)
