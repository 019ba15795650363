"""Normalisation before scoring; raw texts are what is stored."""

from collections.abc import Callable
from functools import lru_cache, partial

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from askd_ray.config.evaluate import Normalizer

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages whose words nothing parts."""


def normalizer(language: str, kind: Normalizer = "whisper") -> Callable[[str], str]:
    """Return what makes texts comparable.

    ``whisper`` is Whisper's English normaliser for ``en`` and its basic one for every other language, ``basic`` the
    basic one for all (lower case, no punctuation), ``none`` leaves texts as they are. Of the first two, words without a
    letter or digit are left out: Whisper's English normaliser leaves a lone "." of "..." and a lone "$", which would
    count as words.
    """
    if kind == "none":
        return str
    return partial(_normalize, _english() if kind == "whisper" and language == "en" else _basic())


def _normalize(normalize: Callable[[str], str], text: str) -> str:
    return " ".join(word for word in normalize(text).split() if any(char.isalnum() for char in word))


@lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    return EnglishTextNormalizer()


@lru_cache(maxsize=1)
def _basic() -> Callable[[str], str]:
    return BasicTextNormalizer()
