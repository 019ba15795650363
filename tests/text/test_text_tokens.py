import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from askd_ray.errors import AskdError
from askd_ray.text.tokens import Tokens


@pytest.fixture(scope="session")
def tokens(weights):
    return Tokens(weights)


@pytest.fixture
def multilingual(tmp_path):
    """A tokenizer with the special ids of the multilingual vocabulary, and no words."""
    special = {
        "<|endoftext|>": 50257,
        "<|startoftranscript|>": 50258,
        "<|en|>": 50259,
        "<|de|>": 50261,
        "<|transcribe|>": 50359,
        "<|notimestamps|>": 50363,
    }
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel(special, unk_token="<|endoftext|>")).save(str(path))
    return Tokens(path)


def test_prompt_of_an_english_model(tokens):
    assert not tokens.multilingual
    assert tokens.prompt() == (50257, 50362)
    assert tokens.end == 50256


def test_prompt_of_a_multilingual_model(multilingual):
    assert multilingual.multilingual
    assert multilingual.prompt("de") == (50258, 50261, 50359, 50363)


def test_prompt_after_earlier_text_and_with_timestamps(tokens):
    assert tokens.prompt(timestamps=True) == (50257,)
    assert tokens.prompt(prompt=" Hello world ") == (50360, 18435, 995, 50257, 50362)
    assert tokens.prompt(prompt=" \n") == tokens.prompt()
    assert len(tokens.prompt(prompt=" nine" * 223)) == 1 + 223 + 2
    with pytest.raises(AskdError, match="the prompt has 224 tokens: at most 223 are allowed"):
        tokens.prompt(prompt=" nine" * 224)


def test_unsupported_languages_are_refused(tokens, multilingual):
    with pytest.raises(AskdError, match=r"'de'.*English-only.*only 'en'"):
        tokens.prompt("de")
    with pytest.raises(AskdError, match=r"no token <\|xx\|>"):
        multilingual.prompt("xx")


def test_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(AskdError, match=r"tokenizer\.json does not exist"):
        Tokens(tmp_path).encode("hello")


def test_encoding_equals_whisper(tokens):
    # GPT-2's vocabulary: " Hello" is 18435, " world" is 995
    assert tokens.encode("Hello world") == [18435, 995]
    assert tokens.encode("  Hello world\n") == [18435, 995]


@given(text=st.text())
def test_text_round_trip(tokens, text):
    assert tokens.decode(tokens.encode(text)) == text.strip()


@given(
    text=st.lists(st.sampled_from(["<|endoftext|>", "<|notimestamps|>", "word", "<|0.00|>"]), max_size=4).map(" ".join)
)
def test_special_tokens_in_a_text_are_encoded_as_text(tokens, text):
    ids = tokens.encode(text)
    assert tokens.end not in ids
    assert tokens.decode(ids) == text


def test_decoding_skips_special_tokens(tokens):
    ids = [*tokens.prompt(), *tokens.encode("hello"), 50363, tokens.end]
    assert tokens.decode(ids) == "hello"


@given(st.text(max_size=20))
def test_pieces_join_to_the_text(tokens, text):
    ids = tokens.encode(text)
    pieces = tokens.pieces(ids)
    assert len(pieces) == len(ids)
    if "\ufffd" not in text:
        assert "".join(pieces) == tokens.tokenizer.decode(ids)


def test_multi_token_character_is_in_the_last_piece(tokens):
    assert tokens.pieces(tokens.encode("a \U0001f600 b")) == (" a", " ", "\U0001f600", " b")
