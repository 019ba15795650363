"""Hooks of `make docs`: links from a page to files outside docs/ become the files' names, which is what a site can show."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page without links to the source tree: ``[text](../path)`` becomes the text and the path."""
    return _OUTSIDE.sub(_without_link, markdown)


def _without_link(match: re.Match[str]) -> str:
    text, path = match[1], match[2]
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"
