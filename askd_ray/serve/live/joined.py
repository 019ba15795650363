"""Captions of a model without a decoder: each piece of a turn is read once, and the paths are joined.

A piece is read with audio on both sides, and kept up to the last pause between words of which the audio after it is
known too. The rest waits for the next piece, so no word is cut. How often a second of audio is encoded does not depend
on the length of the turn.
"""

import codecs
from collections.abc import Sequence

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from askd_ray.serve.live.agreement import rest_of
from askd_ray.serve.transcription_service import SpeechEngine, TranscribeOptions
from askd_ray.text.normalize import UNSPACED

_POSITIONS_PER_S = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION
HOP = 2 * _POSITIONS_PER_S // 5  # positions of new audio in a piece
LEFT, RIGHT = 2 * _POSITIONS_PER_S, 3 * _POSITIONS_PER_S // 10  # of context: read, but not kept
LONG_PAUSE = 2 * _POSITIONS_PER_S // 5  # ends a word though none has begun after it
MAX_WORD = 3 * _POSITIONS_PER_S  # a longer part without a pause is cut, so that a piece has a limited length


class JoinedPaths:
    """The text of the joined paths of one turn."""

    def __init__(self):
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._n_kept = 0  # positions of the turn
        self._end = HOP  # of the next piece, without its context
        self._last_unit = b""
        self._shown = ""

    async def read(self, engine: SpeechEngine, waveform: Waveform, options: TranscribeOptions, owner: str) -> str:
        """Return the new text to show, given the audio of the turn so far."""
        shown_before = len(self._shown)
        while len(waveform) >= (self._end + RIGHT) * SAMPLES_PER_POSITION:
            start = max(0, self._n_kept - LEFT)
            piece = waveform[start * SAMPLES_PER_POSITION : (self._end + RIGHT) * SAMPLES_PER_POSITION]
            path = await engine.read_path(piece, options, owner)
            units = path.units[self._n_kept - start : self._end - start]
            n_kept = last_pause(units, path.language not in UNSPACED)
            self._shown = (self._shown + self._text_of(units[:n_kept])).lstrip()
            self._n_kept, self._end = self._n_kept + n_kept, self._end + HOP
        return self._shown[shown_before:]

    def end(self, text: str) -> str:
        """Return the rest of the final text to show: nothing where the text contradicts what is shown."""
        return rest_of(text, self._shown)

    def _text_of(self, units: Sequence[bytes]) -> str:
        """Return what units add to the text of the units before."""
        text = ""
        for unit in units:
            text += self._decode(unit) if unit != self._last_unit else ""
            self._last_unit = unit
        return text


def last_pause(units: Sequence[bytes], spaced: bool) -> int:
    """Return how many positions of a path come before its last pause between words; 0 if it has none.

    A pause is cut in its middle: the same unit may be some positions earlier or later when it is read with more audio.
    ``spaced``: only a unit with a space begins a word.
    """
    written = [i for i, unit in enumerate(units) if unit]
    end = written[-1] + 1 if written else 0
    if len(units) - end >= LONG_PAUSE:
        return (end + len(units)) // 2
    for before, start in zip(reversed(written[:-1]), reversed(written[1:]), strict=True):
        is_new = before + 1 < start or units[before] != units[start]
        if is_new and (units[start][:1].isspace() or not spaced):
            return (before + 1 + start) // 2
    return len(units) if len(units) >= MAX_WORD else 0
