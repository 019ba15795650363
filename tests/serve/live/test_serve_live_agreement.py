from hypothesis import given
from hypothesis import strategies as st

from askd_ray.serve.live.agreement import Agreement


def test_words_are_shown_when_two_hypotheses_agree():
    agreement = Agreement()
    assert agreement.update("I") == ""
    assert agreement.update("I scream") == "I"
    assert agreement.update("Ice cream is") == ""  # what is shown stays, though the model changed its mind
    assert agreement.update("I scream is good") == ""
    assert agreement.update("I scream, is good for") == " scream, is good"
    assert agreement.end("I scream, is good for you.") == " for you."


def test_different_final_text_adds_no_delta():
    agreement = Agreement()
    agreement.update("one two")
    assert agreement.update("one two") == "one two"
    assert agreement.end("won too three") == ""


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c,", "C"]), max_size=6), max_size=10))
def test_shown_words_are_not_retracted(hypotheses: list[list[str]]):
    agreement, shown = Agreement(), ""
    for words in hypotheses:
        delta = agreement.update(" ".join(words))
        assert not delta or delta.startswith(" ") == bool(shown)
        shown += delta
    assert len(shown.split()) <= max(map(len, hypotheses), default=0)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12))
def test_growing_text_is_shown_completely(words: list[str]):
    agreement, shown = Agreement(), ""
    for n in range(len(words) + 1):
        shown += agreement.update(" ".join(words[:n]))
    assert shown + agreement.end(" ".join(words)) == " ".join(words)
