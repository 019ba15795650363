import pytest
from hypothesis_rows import make_row

from askd_ray.evaluation.calibration import expected_calibration_error, reliability


def row_with_tokens(reference: str, *tokens: tuple[str, float]):
    texts, probs = zip(*tokens, strict=True)
    return make_row("m", reference, "".join(texts).strip(), token_texts=texts, token_probs=probs)


def test_a_diagram_made_by_hand():
    # "Hello" and "," and " wor" + "ld" are right; " man" is not, nor is the word " to" + "o" that nobody said.
    rows = [
        row_with_tokens(
            "hello, World one", (" Hello", 0.95), (",", 0.85), (" wor", 0.91), ("ld!", 0.55), (" man", 0.51)
        ),
        row_with_tokens("", (" to", 0.32), ("o", 1.0)),
    ]
    bins = reliability(rows)
    assert [(b["low"], b["high"], b["tokens"]) for b in bins] == [
        (0.3, 0.4, 1),
        (0.5, 0.6, 2),
        (0.8, 0.9, 1),
        (0.9, 1.0, 3),
    ]
    assert [b["accuracy"] for b in bins] == pytest.approx([0, 1 / 2, 1, 2 / 3])
    assert [b["confidence"] for b in bins] == pytest.approx([0.32, 0.53, 0.85, 2.86 / 3])
    expected = (0.32 + 2 * 0.03 + 0.15 + 3 * (2.86 - 2) / 3) / 7
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_a_model_that_knows_is_calibrated():
    bins = reliability([row_with_tokens("a b", (" a", 1.0), (" x", 0.0))])
    assert expected_calibration_error(bins) == 0.0
    bins = reliability([row_with_tokens("a b", (" a", 0.0), (" x", 1.0))])
    assert expected_calibration_error(bins) == 1.0


def test_words_are_compared_piece_by_piece():
    # A hyphen does not part a word, in neither; a token may begin inside a word, or hold only its end and a space.
    (only,) = reliability(
        [row_with_tokens("the well-known man", (" the wel", 0.7), ("l", 0.7), ("-Known ", 0.7), ("man.", 0.7))]
    )
    assert (only["tokens"], only["accuracy"]) == (4, 1.0)


def test_tokens_of_no_word_do_not_count():
    (only,) = reliability([row_with_tokens("a b", (" ", 0.1), (" a", 0.9), (" -", 0.2), (" b", 0.9), (" ...", 0.3))])
    assert (only["tokens"], only["accuracy"]) == (2, 1.0)


def test_models_that_do_not_tell():
    assert reliability([make_row("m", "a", "a")]) == []
    assert expected_calibration_error([]) is None
    mixed = reliability([make_row("m", "a", "x"), row_with_tokens("b", (" b", 0.5))])
    assert [(b["tokens"], b["accuracy"]) for b in mixed] == [(1, 1.0)]


def test_as_many_probabilities_as_tokens():
    with pytest.raises(ValueError, match="zip"):
        reliability([make_row("m", "a", "a", token_texts=("a", "b"), token_probs=(0.5,))])
