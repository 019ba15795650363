"""Drafts of CTC: tokens that Whisper's tokenizer would write, with entropies; drafts from the text itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_run import Model

from askd_ray.models.draft import EMPTY, Draft, ctc_draft, ngram_draft
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import BLANK, CtcVocabulary

TEXTS = ["Press one, please.", "naïve café", "Grüße 東京 😀", "a", "aa bb", "don't"]


@pytest.fixture(scope="module")
def tokens(tiny_en: Model) -> Tokens:
    return tiny_en[1]


def log_probs_of(path: list[int], n_classes: int, probabilities: list[float]) -> NDArray[np.float32]:
    """Log-probabilities whose most probable path is ``path``; the rest is spread over all other classes."""
    rows = np.array([np.full(n_classes, (1 - p) / (n_classes - 1)) for p in probabilities])
    rows[np.arange(len(path)), path] = probabilities
    return np.log(rows).astype(np.float32)


def entropy_of(probability: float, n_classes: int) -> float:
    rest = (1 - probability) / (n_classes - 1)
    return -probability * np.log(probability) - (1 - probability) * np.log(rest)


def byte_path(text: str, tokens: Tokens, vocabulary: CtcVocabulary) -> list[int]:
    """A path that writes a text byte by byte, each twice and with a blank after it."""
    byte_of = {tokens.tokenizer.id_to_token(i): i for i in range(256)}
    symbols = "".join(str(tokens.tokenizer.id_to_token(i)) for i in tokens.encode(text))
    classes = [vocabulary.token_ids.index(byte_of[symbol]) + 1 for symbol in symbols]
    return [c for one in classes for c in (one, one, BLANK)]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_become_the_tokens_of_the_text(tokens: Tokens, text: str):
    vocabulary = CtcVocabulary.of(())
    path = byte_path(text, tokens, vocabulary)
    draft = ctc_draft(log_probs_of(path, vocabulary.n_classes, [0.9] * len(path)), vocabulary, tokens)
    assert list(draft.token_ids) == tokens.encode(text)
    assert draft.n_units == len(path) // 3
    assert draft.entropy[1:] == pytest.approx([entropy_of(0.9, 257)] * (len(draft.token_ids) - 1), rel=1e-3)


def test_a_token_has_the_largest_entropy_of_its_units(tokens: Tokens):
    vocabulary = CtcVocabulary.of(())
    path = byte_path("one two", tokens, vocabulary)  # " one two": the second token has the bytes 4 to 7
    probabilities = [0.99] * len(path)
    probabilities[3 * 6 + 1] = 0.6
    draft = ctc_draft(log_probs_of(path, 257, probabilities), vocabulary, tokens)
    assert list(draft.token_ids) == tokens.encode("one two") and len(draft.token_ids) == 2
    assert draft.entropy == pytest.approx([entropy_of(0.99, 257), entropy_of(0.6, 257)], rel=1e-3)


def test_nothing_but_blanks_is_an_empty_draft(tokens: Tokens):
    log_probs = log_probs_of([BLANK] * 9, 257, [0.9] * 9)
    assert ctc_draft(log_probs, CtcVocabulary.of(()), tokens) == EMPTY
    assert ctc_draft(log_probs[:0], CtcVocabulary.of(()), tokens) == EMPTY


def test_bytes_that_are_no_character_are_left_out(tokens: Tokens):
    vocabulary = CtcVocabulary.of(())
    whole = byte_path("東", tokens, vocabulary)
    cut = [*whole[:-3], *byte_path("a", tokens, vocabulary)]
    draft = ctc_draft(log_probs_of(cut, 257, [0.9] * len(cut)), vocabulary, tokens)
    assert tokens.decode(list(draft.token_ids)) == "a"
    only = whole[3:6]
    draft = ctc_draft(log_probs_of(only, 257, [0.9] * 3), vocabulary, tokens)
    assert draft == Draft((), (), 1)


@given(seed=st.integers(0, 10_000), n_positions=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_drafts_are_canonical(tokens: Tokens, seed: int, n_positions: int):
    rng = np.random.default_rng(seed)
    vocabulary = CtcVocabulary.of(rng.integers(256, 50_000, 300).tolist())
    logits = rng.normal(0, 3, (n_positions, vocabulary.n_classes))
    logits[:, BLANK] += rng.choice([0.0, 9.0])
    log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    draft = ctc_draft(log_probs, vocabulary, tokens)
    assert list(draft.token_ids) == tokens.encode(tokens.decode(list(draft.token_ids))) or not draft.token_ids
    assert len(draft.entropy) == len(draft.token_ids)
    assert all(0.0 <= e <= np.log(vocabulary.n_classes) + 1e-3 for e in draft.entropy)
    assert draft.n_units <= n_positions


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], []),
        ([1, 2], []),
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # the last time
        ([7, 7, 7], [7]),
        ([1, 2, 3], []),
    ],
)
def test_ngram_draft(written: list[int], expected: list[int]):
    assert ngram_draft(written, size=2, max_tokens=3) == expected


def test_ngram_drafts_can_be_off():
    assert ngram_draft([1, 1, 1], size=0) == []
