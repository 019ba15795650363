"""Normalisation before scoring; raw texts are what is stored."""

from collections.abc import Callable
from functools import lru_cache

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer


@lru_cache(maxsize=2)
def normalizer(language: str) -> Callable[[str], str]:
    """Return Whisper's normaliser: the English one for ``en``, the basic one for every other language."""
    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
