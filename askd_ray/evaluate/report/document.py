"""What a report consists of, before anything is said about its looks: HTML and Markdown are made from the same."""

import re
from dataclasses import dataclass
from typing import Literal

from askd_ray.evaluate.significance import Rate, RateDifference
from askd_ray.text.alignment import AlignedWord

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Text:
    """A paragraph. A ``remark`` is small print."""

    text: str
    remark: bool = False


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a word or a figure, and the figures behind it."""

    question: str
    answer: str
    why: str
    tone: Tone


@dataclass(frozen=True)
class Answers:
    """The verdict."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class TableBlock:
    """A table. The first ``n_labels`` cells of a row say what it is about."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_labels: int = 1

    @property
    def figures(self) -> list[bool]:
        """Of each column, whether figures stand in it: they are ranged right."""
        columns = zip(*self.rows, strict=True)
        return [i >= self.n_labels and all(map(_is_figure, column)) for i, column in enumerate(columns)]


@dataclass(frozen=True)
class Figure:
    """A plot: ``svg`` for the page, in its reader's colours, ``png`` for a file."""

    name: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Code:
    """Text to copy. What is ``folded`` shows when asked for."""

    caption: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class QuotedTranscript:
    """What one model made of a clip: its words beside the reference's, ``n_more`` of them not shown."""

    model: str
    errors: int
    words: int
    aligned: tuple[AlignedWord, ...]
    n_more: int


@dataclass(frozen=True)
class Audio:
    """Sound to play: an encoded file."""

    mime: str
    data: bytes


@dataclass(frozen=True)
class ClipBlock:
    """One utterance. ``audio`` is a reason where there is none to play."""

    title: str
    audio: Audio | str
    reference: str
    said: tuple[QuotedTranscript, ...]


@dataclass(frozen=True)
class Legend:
    """How the words of clips are marked."""


@dataclass(frozen=True)
class ClipsBlock:
    """Utterances to listen to."""

    clips: tuple[ClipBlock, ...]


Block = Text | Answers | TableBlock | Figure | Code | Legend | ClipsBlock


@dataclass(frozen=True)
class ReportSection:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: tuple[ReportSection, ...]


def percent(share: float | None) -> str:
    """Return a share in percent, without the sign."""
    return "-" if share is None else f"{100 * share:.2f}"


def rate(of: Rate) -> str:
    """Return a WER in percent with its interval."""
    low, high = of["wer_ci95"]
    return f"{percent(of['wer'])} ({percent(low)} to {percent(high)})"


def points(of: RateDifference) -> str:
    """Return a difference of WERs in percentage points with its interval."""
    return f"{100 * of['value']:+.2f} ({100 * of['low']:+.2f} to {100 * of['high']:+.2f})"


def count(n: int, what: str) -> str:
    """Return ``1 clip`` or ``2 clips``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _is_figure(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+\b.*|-|", cell) is not None
