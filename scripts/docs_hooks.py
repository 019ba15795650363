"""Hooks of `make docs`: on the site, a link from a page to a file outside docs/ becomes the name of the file."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)")
_ROLE = re.compile(r":[a-z]+:<code>~?([\w.]+)</code>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page without links to the source tree: ``[text](../path)`` becomes the text and the path."""
    return _OUTSIDE.sub(_without_link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Return a page whose docstrings show names instead of reStructuredText's roles."""
    return _ROLE.sub(lambda match: f"<code>{match[1].rpartition('.')[2]}</code>", html)


def _without_link(match: re.Match[str]) -> str:
    text, path = match[1], match[2]
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"
