"""Text normalisation before scoring; stored texts are not normalised."""

from collections.abc import Callable
from functools import lru_cache, partial

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from askd_ray.config.evaluate import Normalizer

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages written without spaces between words."""


def normalizer(language: str, kind: Normalizer = "whisper") -> Callable[[str], str]:
    """Return the function that normalises texts of a language.

    ``whisper`` is Whisper's English normaliser for ``en`` and its basic one for other languages, ``basic`` the basic
    one for all (lower case, no punctuation), ``none`` leaves texts unchanged. The first two drop words without a letter
    or digit: Whisper's English normaliser turns "..." into a lone ".", which would count as a word.
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
