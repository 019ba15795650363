"""Partial results that do not flicker: a word is shown when two successive hypotheses agree on it, and then it stays.

Local agreement of Liu, Spanakis and Niehues (Interspeech 2020), as whisper_streaming (arXiv 2307.14743) uses it. It is
for models with a decoder, which read the whole turn each time.
"""

from itertools import takewhile

from askd_ray.audio.decode import Waveform
from askd_ray.serve.transcription_service import SpeechEngine, TranscribeOptions


class Agreement:
    """The words on which two successive hypotheses of growing audio agree."""

    def __init__(self):
        self._last_hypothesis: list[str] = []
        self._shown: list[str] = []

    async def read(self, engine: SpeechEngine, waveform: Waveform, options: TranscribeOptions, owner: str) -> str:
        """Transcribe the turn so far, and return the new words to show."""
        result = await engine.transcribe_chunk(waveform, options, owner)
        return self.update(result.transcript.text)

    def update(self, hypothesis: str) -> str:
        """Return the new words to show, with a space before them where words are shown already."""
        words = hypothesis.split()
        common = takewhile(
            lambda pair: _normalized(pair[0]) == _normalized(pair[1]), zip(self._last_hypothesis, words, strict=False)
        )
        agreed = words[len(self._shown) : sum(1 for _ in common)]
        self._last_hypothesis = words
        space = " " if self._shown and agreed else ""
        self._shown += agreed
        return space + " ".join(agreed)

    def end(self, text: str) -> str:
        """Return the rest of the final text to show: nothing where the text contradicts the shown words."""
        return rest_of(text, " ".join(self._shown))


def rest_of(text: str, shown: str) -> str:
    """Return the rest of a final text, after what is shown of it; nothing where the text contradicts that."""
    if text.startswith(shown):  # also in languages without spaces
        return text[len(shown) :]
    words, shown_words = text.split(), shown.split()
    if [_normalized(word) for word in words[: len(shown_words)]] != [_normalized(word) for word in shown_words]:
        return ""
    rest = " ".join(words[len(shown_words) :])
    return f" {rest}" if rest else ""


def _normalized(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum()) or word
