"""Partial results that do not flicker: a word is shown when two successive hypotheses agree on it, and then it stays.

Local agreement of Liu, Spanakis and Niehues (Interspeech 2020), as whisper_streaming (arXiv 2307.14743) uses it.
"""

from itertools import takewhile


class Agreement:
    """The words on which two successive hypotheses of growing audio agree."""

    def __init__(self):
        self._last_hypothesis: list[str] = []
        self._shown: list[str] = []

    def update(self, hypothesis: str) -> str:
        """Return the new words to show, with a space before them where words are shown already."""
        words = hypothesis.split()
        common = takewhile(
            lambda pair: _normalized(pair[0]) == _normalized(pair[1]), zip(self._last_hypothesis, words, strict=False)
        )
        agreed = words[len(self._shown) : sum(1 for _ in common)]
        self._last_hypothesis = words
        return self._show(agreed)

    def end(self, text: str) -> str:
        """Return the rest of the final text to show: nothing where the text contradicts the shown words."""
        words = text.split()
        if [_normalized(word) for word in words[: len(self._shown)]] != [_normalized(word) for word in self._shown]:
            return ""
        return self._show(words[len(self._shown) :])

    def _show(self, words: list[str]) -> str:
        space = " " if self._shown and words else ""
        self._shown += words
        return space + " ".join(words)


def _normalized(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum()) or word
