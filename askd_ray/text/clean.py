"""Clean transcripts of data sets: repair what can be repaired without a loss, and find unusable texts."""

import re
import unicodedata

_JOINERS = {"\u200c", "\u200d"}  # needed in Persian and in Indic scripts
_MARKUP = re.compile(r"<[^<>\s][^<>]*>|&(?:#\d+|#x[\da-fA-F]+|[a-zA-Z]{2,8});")  # <unk>, <beep ascending>, &amp;


def clean(text: str) -> str:
    """Return a text in Unicode's NFC with single spaces and without invisible characters.

    Control characters count as white space. Byte order marks, zero-width spaces, soft hyphens and direction marks are
    removed; joiners between letters stay, since some scripts need them.
    """
    visible = "".join(_visible(character) for character in text)
    return " ".join(unicodedata.normalize("NFC", visible).split())


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category == "Cf" and character not in _JOINERS else character


def text_problem(text: str) -> tuple[str, str] | None:
    """Return why a clean text is not a usable training target, as a reason and its detail, or None.

    An empty text is allowed here; the caller decides about it.
    """
    if "\ufffd" in text or any(unicodedata.category(character) == "Cs" for character in text):
        return "damaged text", "it holds replacement characters (U+FFFD) or half characters (lone surrogates)"
    if match := _MARKUP.search(text):
        return "markup in the text", f"{match[0]!r} is not speech"
    if text and not any(character.isalnum() for character in text):
        return "text without words", repr(text[:50])
    return None
