"""Which tokens a language uses most, by the frequency of its words."""

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from askd_ray.errors import AskdError
from askd_ray.text.tokens import Tokens

_CAPITALISED = 0.15  # the share of a word's occurrences that begin a sentence, or are names
_KEY = "student.vocabulary"


def frequent_tokens(tokens: Tokens, languages: Sequence[str]) -> list[int]:
    """Return the text tokens that the words of some languages are written with, the most frequent ones first.

    A token's frequency is the sum of those of the words that it is a part of, over the languages.

    Raises :class:`AskdError` when wordfreq is not installed, and when it does not know a language.
    """
    frequency = defaultdict[int, float](float)
    for language in languages:
        for word, of_word in _words(language):
            for written, share in ((word, 1.0 - _CAPITALISED), (word.capitalize(), _CAPITALISED)):
                for token in tokens.encode(written):
                    frequency[token] += share * of_word
    return sorted(frequency, key=lambda token: (-frequency[token], token))


@lru_cache(maxsize=4)
def _words(language: str) -> list[tuple[str, float]]:
    """Return the words of a language that are more frequent than one in a million, with their shares of all words."""
    if importlib.util.find_spec("wordfreq") is None:
        raise AskdError(f"{_KEY} needs the frequencies of words: pip install 'askd-ray[vocabulary]'")
    import wordfreq

    known = wordfreq.available_languages()
    if language not in known:
        raise AskdError(f"{_KEY}.languages: wordfreq does not know {language!r}; it knows {', '.join(sorted(known))}")
    return list(wordfreq.get_frequency_dict(language, wordlist="small").items())
