"""Partial results that do not flicker: a word is shown when two hypotheses in a row agree on it, and never taken back.

Local agreement of Liu, Spanakis and Niehues (Interspeech 2020), as whisper_streaming (arXiv 2307.14743) uses it.
"""

from itertools import takewhile


class Agreement:
    """What two hypotheses in a row of the same growing audio agree on."""

    def __init__(self):
        self._before: list[str] = []
        self._shown: list[str] = []

    def update(self, hypothesis: str) -> str:
        """Return what is to be shown now, behind what was: with a space before it where it is not the first."""
        words = hypothesis.split()
        same = takewhile(lambda pair: _bare(pair[0]) == _bare(pair[1]), zip(self._before, words, strict=False))
        agreed = words[len(self._shown) : sum(1 for _ in same)]
        self._before = words
        return self._show(agreed)

    def end(self, text: str) -> str:
        """Return what is left to be shown of the final text: nothing where it is not what was shown so far."""
        words = text.split()
        if [_bare(word) for word in words[: len(self._shown)]] != [_bare(word) for word in self._shown]:
            return ""
        return self._show(words[len(self._shown) :])

    def _show(self, words: list[str]) -> str:
        space = " " if self._shown and words else ""
        self._shown += words
        return space + " ".join(words)


def _bare(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum()) or word
