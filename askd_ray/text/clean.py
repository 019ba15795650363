"""Transcripts as data sets bring them: what is repaired without a loss, and what makes one unusable."""

import re
import unicodedata

_JOINERS = {"\u200c", "\u200d"}  # Persian and the languages of India write with them
_MARKUP = re.compile(r"<[^<>\s][^<>]*>|&(?:#\d+|#x[\da-fA-F]+|[a-zA-Z]{2,8});")  # <unk>, <beep ascending>, &amp;


def clean(text: str) -> str:
    """Return a text in Unicode's NFC, its white space single, without characters that nobody sees.

    Control characters count as white space. Byte order marks, zero-width spaces, soft hyphens and marks of direction
    go; joiners between letters stay, since some scripts need them.
    """
    seen = "".join(_visible(character) for character in text)
    return " ".join(unicodedata.normalize("NFC", seen).split())


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category == "Cf" and character not in _JOINERS else character


def trouble_with_text(text: str) -> tuple[str, str] | None:
    """Return why a clean text cannot be what a model learns to write, as a reason and its detail, or None.

    An empty text is no trouble here: that depends on who asks.
    """
    if "\ufffd" in text or any(unicodedata.category(character) == "Cs" for character in text):
        return "damaged text", "it holds characters that stand for bytes that were no text"
    if found := _MARKUP.search(text):
        return "markup in the text", f"{found[0]!r} is nothing that is spoken"
    if text and not any(character.isalnum() for character in text):
        return "text without words", repr(text[:50])
    return None
