"""The content of a report without its layout: HTML and Markdown are generated from it."""

import re
from dataclasses import dataclass
from typing import Literal

from askd_ray.text.alignment import AlignedWord

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Text:
    """A paragraph. A ``remark`` is shown in small print."""

    text: str
    remark: bool = False


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a word or a number, and the numbers behind it."""

    question: str
    answer: str
    why: str
    tone: Tone


@dataclass(frozen=True)
class Answers:
    """The verdict: a list of answers."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class TableBlock:
    """A table. The first ``n_labels`` cells of a row are its labels."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_labels: int = 1

    @property
    def figures(self) -> list[bool]:
        """For each column, whether it holds numbers, which are aligned right."""
        columns = zip(*self.rows, strict=True)
        return [i >= self.n_labels and all(map(_is_figure, column)) for i, column in enumerate(columns)]


@dataclass(frozen=True)
class Figure:
    """A plot: ``svg`` for the page, in the page's colours, ``png`` for a file."""

    name: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Code:
    """Text to copy. A ``folded`` block opens on a click."""

    caption: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class QuotedTranscript:
    """A model's transcript of a clip, aligned with the reference; ``n_more`` words are not shown."""

    model: str
    errors: int
    words: int
    aligned: tuple[AlignedWord, ...]
    n_more: int


@dataclass(frozen=True)
class Audio:
    """Audio to play: an encoded file."""

    mime: str
    data: bytes


@dataclass(frozen=True)
class ClipBlock:
    """One utterance. ``audio`` is a reason (a string) when there is nothing to play."""

    title: str
    audio: Audio | str
    reference: str
    transcripts: tuple[QuotedTranscript, ...]


@dataclass(frozen=True)
class Legend:
    """The legend for the marks in transcripts."""


@dataclass(frozen=True)
class ClipsBlock:
    """Utterances to listen to."""

    clips: tuple[ClipBlock, ...]


Block = Text | Answers | TableBlock | Figure | Code | Legend | ClipsBlock


@dataclass(frozen=True)
class ReportSection:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: tuple[ReportSection, ...]


def _is_figure(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+\b.*|-|", cell) is not None
