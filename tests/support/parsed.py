"""Reads a report back from HTML and Markdown: tables cell by cell, and the text outside them."""

import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

Grid = list[list[str]]


@dataclass
class Seen:
    """All tables in order, with spanning labels repeated in every row, and all other text."""

    tables: list[Grid] = field(default_factory=list)
    text: str = ""

    @property
    def numbers(self) -> list[str]:
        return re.findall(r"[-+]?\d+(?:\.\d+)?", self.text)


class Page(HTMLParser):
    """Reads a page. ``tags`` holds all its tags."""

    def __init__(self, text: str):
        super().__init__()
        self.seen, self.tags = Seen(), list[str]()
        self._inside, self._cell, self._spans = list[str](), "", dict[int, tuple[int, str]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self._inside.append(tag)
        if tag == "table":
            self.seen.tables.append([])
            self._spans = {}
        elif tag == "tr":
            self.seen.tables[-1].append([])
            self._carry_on()
        elif tag in ("th", "td"):
            self._cell, self._rows = "", int(dict(attrs).get("rowspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag in ("th", "td"):
            row = self.seen.tables[-1][-1]
            if self._rows > 1:
                self._spans[len(row)] = (self._rows - 1, self._cell)
            row.append(self._cell)
            self._carry_on()

    def _carry_on(self) -> None:
        row = self.seen.tables[-1][-1]
        while len(row) in self._spans:
            left, text = self._spans.pop(len(row))
            if left > 1:
                self._spans[len(row)] = (left - 1, text)
            row.append(text)

    def handle_data(self, data: str) -> None:
        if "th" in self._inside or "td" in self._inside:
            self._cell += data
        elif not {"style", "svg", "title", "nav", "figcaption"} & set(self._inside):
            self.seen.text += data


def read_markdown(text: str) -> Seen:
    """Read a report in Markdown."""
    seen, in_table = Seen(), False
    for line in text.splitlines():
        if line.startswith("| "):
            if not in_table:
                seen.tables.append([])
            cells = [_unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(set(cell) <= {"-", ":"} and len(cell) > 2 for cell in cells):
                seen.tables[-1].append(cells)
        elif not line.startswith("!["):
            seen.text += _unescaped(line) + "\n"
        in_table = line.startswith("| ")
    return seen


def _unescaped(text: str) -> str:
    return html.unescape(re.sub(r"\\([\\`*_\[\]<>&|#~])", r"\1", text))
