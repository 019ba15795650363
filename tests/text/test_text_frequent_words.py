"""The tokens of frequent words."""

import importlib.util

import pytest
from tiny_run import Model

from askd_ray.errors import AskdError
from askd_ray.text.frequent_words import _words, frequent_tokens


def test_frequent_words_come_first(tiny_en: Model):
    tokens = tiny_en[1]
    ranked = frequent_tokens(tokens, ["en"])
    assert len(set(ranked)) == len(ranked) and max(ranked) < tokens.end
    places = {token: place for place, token in enumerate(ranked)}
    the, empire, emperor, seventeen = (tokens.encode(w)[0] for w in ("the", "empire", "emperor", "seventeen"))
    assert places[the] < 5 and max(places[empire], places[emperor], places[seventeen]) < 16_000
    assert frequent_tokens(tokens, ["en"]) == ranked


def test_each_language_has_its_words(tiny_en: Model):
    """German needs other tokens than English, even in an English vocabulary."""
    tokens = tiny_en[1]
    english, both = (set(frequent_tokens(tokens, codes)[:2_000]) for codes in (["en"], ["en", "de"]))
    assert tokens.encode("und")[0] in both - english


def test_unknown_languages_and_a_missing_package_are_refused(tiny_en: Model, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AskdError, match=r"wordfreq does not know 'xx'; it knows .*de, .*en"):
        frequent_tokens(tiny_en[1], ["xx"])
    _words.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AskdError, match=r"pip install 'askd-ray\[vocabulary\]'"):
        frequent_tokens(tiny_en[1], ["en"])
