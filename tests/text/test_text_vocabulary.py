"""A smaller vocabulary: what it keeps, and that any text can be written in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import Model
from tokenizers import Tokenizer

from askd_ray.errors import AskdError
from askd_ray.fetch.weights import fetch_weights
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import PrunedVocabulary, TokenMap, choose_tokens

N_VOCAB = 51_864
TEXTS = st.one_of(st.text(), st.text("thequickbrownfoxZ '.,0123456789"), st.lists(st.text("abcdeft'")).map(" ".join))


@pytest.fixture(scope="module")
def vocabularies(tiny_en: Model) -> dict[int, PrunedVocabulary]:
    """Vocabularies of three sizes, for texts of a few words."""
    tokens = tiny_en[1]
    ranked = tokens.encode("a conference has been extended astronomically")
    return {n: choose_tokens(tokens, ranked, {2343}, n) for n in (512, 3_000, 50_255)}


@pytest.fixture(scope="module")
def pruned(vocabularies: dict[int, PrunedVocabulary], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Tokens]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for n, vocabulary in vocabularies.items():
        (folder / f"{n}.json").write_bytes(vocabulary.tokenizer_json)
    return {n: Tokens(folder / f"{n}.json") for n in vocabularies}


@pytest.fixture(scope="module")
def maps(vocabularies: dict[int, PrunedVocabulary]) -> dict[int, TokenMap]:
    return {n: vocabulary.token_map(N_VOCAB) for n, vocabulary in vocabularies.items()}


@settings(deadline=None)
@given(text=TEXTS, n=st.sampled_from((512, 3_000, 50_255)))
def test_any_text_is_written_with_kept_tokens(tiny_en: Model, pruned: dict[int, Tokens], text: str, n: int):
    ids = pruned[n].encode(text)
    assert all(0 <= i < pruned[n].end == n for i in ids)
    assert pruned[n].tokenizer.decode(ids) == tiny_en[1].tokenizer.decode(tiny_en[1].encode(text))


@settings(deadline=None)
@given(text=TEXTS, n=st.sampled_from((512, 3_000, 50_255)))
def test_pieces_of_a_text_write_the_same_text(
    tiny_en: Model, pruned: dict[int, Tokens], maps: dict[int, TokenMap], text: str, n: int
):
    ids = tiny_en[1].encode(text)
    pieces, places = maps[n].split(ids)
    assert pruned[n].tokenizer.decode(pieces.tolist()) == tiny_en[1].tokenizer.decode(ids)
    assert sorted(set(places.tolist())) == list(range(len(ids))) and (np.diff(places) >= 0).all()
    for place, token in enumerate(ids):
        of_token = pieces[places == place].tolist()
        assert b"".join(map(pruned[n].bytes_of, of_token)) == tiny_en[1].bytes_of(token)
        assert maps[n].first(np.array(token)) == of_token[0]


@settings(deadline=None)
@given(text=TEXTS, n=st.sampled_from((512, 3_000, 50_255)))
def test_a_text_of_kept_tokens_is_encoded_as_the_teacher_encodes_it(
    tiny_en: Model, vocabularies: dict[int, PrunedVocabulary], pruned: dict[int, Tokens], text: str, n: int
):
    ids = [vocabularies[n].student_id(i) for i in tiny_en[1].encode(text)]
    if None not in ids:
        assert pruned[n].encode(text) == ids


def test_kept_tokens_are_numbered_in_the_teacher_s_order(
    tiny_en: Model, vocabularies: dict[int, PrunedVocabulary], pruned: dict[int, Tokens], maps: dict[int, TokenMap]
):
    whole = tiny_en[1]
    for n, vocabulary in vocabularies.items():
        kept = [*vocabulary.token_ids, *range(whole.end, N_VOCAB)]
        assert [vocabulary.student_id(i) for i in kept] == list(range(len(kept)))  # a bijection
        assert sorted(set(range(whole.end)) - set(vocabulary.token_ids)) == [
            i for i in range(N_VOCAB) if vocabulary.student_id(i) is None
        ]
        assert len(vocabulary.token_ids) == n == whole.end - vocabulary.n_removed
        assert maps[n].split(kept)[0].tolist() == list(range(len(kept)))
        for token in (*vocabulary.token_ids, whole.end, whole.id_of("<|notimestamps|>")):
            symbol = whole.tokenizer.id_to_token(token)
            assert pruned[n].tokenizer.token_to_id(str(symbol)) == vocabulary.student_id(token)
        assert not pruned[n].multilingual and pruned[n].languages == ("en",)
        assert pruned[n].prompt() == tuple(vocabulary.student_id(i) for i in whole.prompt())


def test_ranked_tokens_come_before_the_teacher_s_order(tiny_en: Model):
    tokens = tiny_en[1]
    rare, often = (tokens.encode(text) for text in ("astronomically", "extended"))
    assert len(often) == 1 and often[0] > 5_000
    vocabulary = choose_tokens(tokens, (*often, *rare), (), 512)
    assert {*rare, *often} <= set(vocabulary.token_ids)
    assert set(range(450)) <= set(vocabulary.token_ids)
    crowded = (*range(30_000, 40_000), *rare)
    assert not set(rare) <= set(choose_tokens(tokens, crowded, (), 512).token_ids)
    assert set(rare) <= set(choose_tokens(tokens, crowded, rare, 512).token_ids)


def test_every_kept_token_can_be_reached_by_merges(vocabularies: dict[int, PrunedVocabulary]):
    for n, vocabulary in vocabularies.items():
        bpe = json.loads(vocabulary.tokenizer_json)["model"]
        assert len(bpe["merges"]) == n - 256
        assert all(part in bpe["vocab"] for merge in bpe["merges"] for part in merge.split(" "))


@pytest.mark.slow  # fetches the weights of base
def test_a_multilingual_vocabulary_stays_multilingual(tmp_path: Path):
    base_tokens = Tokens(fetch_weights("base"))
    vocabulary = choose_tokens(base_tokens, (), (), 600)
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.tokenizer_json)
    pruned = Tokens(tmp_path)
    assert pruned.multilingual and pruned.languages == base_tokens.languages
    assert pruned.prompt("de") == tuple(vocabulary.student_id(i) for i in base_tokens.prompt("de"))
    assert pruned.decode(pruned.encode("Grüße aus Köln, 北京")) == "Grüße aus Köln, 北京"


def test_a_vocabulary_that_cannot_be_is_refused(tiny_en: Model):
    with pytest.raises(AskdError, match=r"student.vocabulary.keep = 50256: .* has 50256 text tokens: keep fewer"):
        choose_tokens(tiny_en[1], (), (), 50_256)
    with pytest.raises(AskdError, match="bytes and the tokens that engines suppress are 600: keep more"):
        choose_tokens(tiny_en[1], (), range(600), 512)


def test_older_files_write_merges_as_text(tiny_en: Model, tmp_path: Path):
    settings_of_file = json.loads(tiny_en[1].file.read_bytes())
    merges = settings_of_file["model"]["merges"]
    settings_of_file["model"]["merges"] = [m.split(" ") if isinstance(m, str) else " ".join(m) for m in merges]
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings_of_file))
    one, other = (choose_tokens(t, (), (), 2_000) for t in (tiny_en[1], Tokens(tmp_path)))
    assert one.token_ids == other.token_ids
    a, b = (Tokenizer.from_buffer(v.tokenizer_json) for v in (one, other))
    assert a.encode(" a longer sentence, to compare").ids == b.encode(" a longer sentence, to compare").ids
