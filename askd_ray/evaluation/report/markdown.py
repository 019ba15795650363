"""A report as Markdown, with its plots as separate files."""

import re

from askd_ray.evaluation.report.document import (
    Answers,
    Audio,
    Block,
    ClipBlock,
    ClipsBlock,
    Code,
    Document,
    Figure,
    Legend,
    QuotedTranscript,
    TableBlock,
    Text,
)
from askd_ray.text.alignment import AlignedWord

_LEGEND = (
    "Texts are normalised and aligned as in scoring. [reference→hypothesis]: a substitution. [-reference]: a deletion. "
    "[+hypothesis]: an insertion."
)
_SPECIAL = re.compile(r"([\\`*_\[\]<>&|#~])")


def to_markdown(document: Document, figures: str) -> str:
    """Return the document as Markdown; its plots are files ``<figures>/<name>.png``."""
    parts = [f"# {_plain(document.title)}"]
    for section in document.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block, figures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Return text on one line, escaped so that Markdown shows it unchanged."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block, figures: str) -> str:
    match block:
        case Text():
            return _plain(block.text)
        case Answers():
            return "\n".join(f"- {_plain(a.question)} **{_plain(a.answer)}.** {_plain(a.why)}" for a in block.answers)
        case TableBlock():
            return f"{_plain(block.caption)}:\n\n{_table(block)}"
        case Figure():
            return f"![{_plain(block.caption)}]({figures}/{block.name}.png)"
        case Code():
            return f"{_plain(block.caption)}:\n\n{_indented(block.text)}"
        case Legend():
            return _plain(_LEGEND)
        case ClipsBlock():
            return "\n\n".join(_clip(clip) for clip in block.clips)


def _table(table: TableBlock) -> str:
    marks = ["---:" if figures else "---" for figures in table.figures]
    lines = [[_plain(cell) for cell in table.head], marks, *([_plain(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _clip(clip: ClipBlock) -> str:
    sound = [] if isinstance(clip.audio, Audio) else [f"- ({_plain(clip.audio)})"]
    lines = [f"- reference: {_plain(clip.reference)}", *map(_quoted, clip.transcripts), *sound]
    return "\n".join([f"**{_plain(clip.title)}**", "", *lines])


def _quoted(quoted: QuotedTranscript) -> str:
    more = f" ... and {quoted.n_more} more" if quoted.n_more else ""
    text = " ".join(map(_word, quoted.aligned))
    return f"- {_plain(quoted.model)}, {quoted.errors} of {quoted.words} wrong: {_plain(text + more)}"


def _word(word: AlignedWord) -> str:
    if word.is_right:
        return word.reference
    if word.reference and word.hypothesis:
        return f"[{word.reference}→{word.hypothesis}]"
    return f"[-{word.reference}]" if word.reference else f"[+{word.hypothesis}]"
