import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from askd_ray.errors import AskdError
from askd_ray.text.languages import LANGUAGE_NAMES, language_code


def test_languages_are_those_of_whisper():
    assert LANGUAGE_NAMES == LANGUAGES
    for name, code in TO_LANGUAGE_CODE.items():
        assert language_code(name) == language_code(name.title()) == code
    for code in LANGUAGES:
        assert language_code(code) == language_code(code.upper()) == language_code(f"{code}-XK") == code


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("en EN en-US en_us en-Latn-GB eng english English ENGLISH", "en"),
        ("de deu ger de-AT German", "de"),
        ("zh zh-CN zh-Hans-CN zh-TW cmn zho chi mandarin", "zh"),
        ("yue zh-yue yue-Hant-HK Cantonese", "yue"),
        ("jw jv jav Javanese", "jw"),
        ("tl fil tgl fil-PH Tagalog", "tl"),
        ("no nb nb-NO nob nor", "no"),
        ("nn nno nn-NO nynorsk", "nn"),
        ("he iw heb", "he"),
        ("id in ind", "id"),
        ("yi ji yid", "yi"),
        ("pt pt-BR por", "pt"),
        ("haw haw-US Hawaiian", "haw"),
        ("Haitian_Creole ht hat", "ht"),
        ("sr-Latn sr-Cyrl-RS srp", "sr"),
        ("ar arb arabic", "ar"),
    ],
)
def test_language_spellings(names: str, code: str):
    assert {name: language_code(name) for name in names.split()} == dict.fromkeys(names.split(), code)


def test_white_space_around_a_name_is_ignored():
    assert language_code(" en ") == language_code("english\n") == "en"
    assert language_code("Haitian  Creole") == "ht"


@pytest.mark.parametrize(
    "name", ["", " ", "xx", "qqq", "und", "mul", "klingon", "e", "en--US", "en-US.UTF-8", "auto", "none", "tlh", "null"]
)
def test_unknown_language_is_refused_with_allowed_ones(name: str):
    with pytest.raises(AskdError) as refused:
        language_code(name)
    assert f"language {name!r}" in str(refused.value)
    assert "a code (en), a tag (en-US) or an English name (english) is allowed" in str(refused.value)


def test_refusal_is_short_with_a_suggestion():
    with pytest.raises(AskdError, match="did you mean 'english'"):
        language_code("Englisch")
    with pytest.raises(AskdError) as refused:
        language_code("x" * 60_000)
    assert len(str(refused.value)) < 300


@given(st.text() | st.from_regex(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}", fullmatch=True))
@example("en-a")
@example("i-default")
@example("zh-x")
def test_any_text_is_a_whisper_code_or_refused(name: str):
    try:
        code = language_code(name)
    except AskdError as refused:
        assert "\n" not in str(refused)
    else:
        assert code in LANGUAGES and language_code(code) == code
