"""Check the rows of a source: the audio must decode and not be silent, and text and language must be usable."""

import unicodedata
from dataclasses import dataclass, replace

import numpy as np

from askd_ray.audio.decode import AudioError, Waveform, decode, duration_s
from askd_ray.config.data import Data
from askd_ray.data.schema import SPLITS, Split, Utterance
from askd_ray.data.sources import SourceRow
from askd_ray.errors import AskdError
from askd_ray.text.clean import clean, text_problem
from askd_ray.text.languages import language_code

NO_TEXT = "empty text"
"""The quarantine reason of a row without text, where a text is needed."""

NO_REFERENCE: dict[Split, str] = {split: f"no reference for the {split} split" for split in SPLITS}
"""The quarantine reasons of a row without text that only its split cannot use."""

DEV_IS_FULL = "more dev than data.max_dev_hours"
"""The quarantine reason of a usable dev row that the limit of dev leaves out."""

SILENCE_PEAK = 1e-3
"""A clip whose loudest sample stays below this (-60 dBFS) counts as silence."""


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used: ``reason`` is one of a fixed list, ``detail`` is free text."""

    id: str
    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class RowLimits:
    """The limits of a row's audio; ``chars_per_s`` (min, max) are characters of text a second."""

    min_duration_s: float
    max_duration_s: float
    chars_per_s: tuple[float, float] | None = None

    @classmethod
    def of(cls, data: Data) -> "RowLimits":
        """Return the limits of a recipe's data."""
        return cls(data.min_duration_s, data.max_duration_s, data.chars_per_s)


class _UnusableError(ValueError):
    """The reason and the detail of a row that cannot be used."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def clean_row(row: SourceRow) -> SourceRow | Rejected:
    """Return a row with cleaned texts and Whisper's language code.

    A row is rejected if it has a ``problem``, if its id has control characters, if its text is unusable, or if its
    language is unknown. The text may be empty.
    """
    try:
        if row.problem:
            reason, _, detail = row.problem.partition(": ")
            raise _UnusableError(reason, detail)
        if any(unicodedata.category(character) == "Cc" for character in row.id):
            raise _UnusableError("unusable id", f"{row.id!a} holds control characters")
        text = clean(row.text)
        problem = text_problem(text)
        if problem is not None:
            raise _UnusableError(*problem)
        try:
            language = language_code(row.language)
        except AskdError as error:
            raise _UnusableError("unknown language", str(error)) from None
    except _UnusableError as error:
        return Rejected(row.id, row.where, error.reason, error.detail)
    return replace(row, text=text, language=language, speaker=clean(row.speaker), domain=clean(row.domain))


def check_row(row: SourceRow, limits: RowLimits, split: Split) -> Utterance | Rejected:
    """Return a clean row as an utterance of ``split``, or the reason why its audio cannot be used.

    Raises :class:`AskdError` when the storage of the audio cannot be read.
    """
    try:
        audio = row.read_audio(limits.max_duration_s)
        waveform = decode(audio, limits.max_duration_s)
        _check_waveform(waveform, row.text, limits)
    except AudioError as error:
        reason, _, detail = str(error).partition(": ")
        return Rejected(row.id, row.where, reason, detail)
    except _UnusableError as error:
        return Rejected(row.id, row.where, error.reason, error.detail)
    return Utterance(
        id=row.id,
        audio=audio,
        path=row.path,
        text=row.text,
        duration_s=duration_s(waveform),
        speaker=row.speaker,
        language=row.language,
        domain=row.domain,
        split=split,
        licence=row.licence,
    )


def _check_waveform(waveform: Waveform, text: str, limits: RowLimits) -> None:
    seconds = duration_s(waveform)
    if seconds < limits.min_duration_s:
        raise _UnusableError(f"shorter than {limits.min_duration_s:g} s", f"{seconds:.3g} s")
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        raise _UnusableError("silence", f"the peak is {peak:.1g} of full scale")
    if not text or limits.chars_per_s is None:
        return
    min_pace, max_pace = limits.chars_per_s
    pace = len(text) / seconds
    if not min_pace <= pace <= max_pace:
        reason = "too much text for the audio" if pace > max_pace else "too little text for the audio"
        raise _UnusableError(reason, f"{pace:.3g} characters a second, and {min_pace:g} to {max_pace:g} are allowed")
