"""A smaller vocabulary of a Whisper: the text tokens that it keeps, its tokenizer, and the teacher's tokens in its ids.

A student with it has fewer rows of token embeddings, which are also its output projection. Its ids are the places of
the kept tokens: first the text tokens, then all special and timestamp tokens, each in the teacher's order. A token that
it does not have is written in pieces, at last in bytes, so it can write any text.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from askd_ray.errors import AskdError
from askd_ray.text.tokens import Tokens

_KEY = "student.vocabulary.keep"


@dataclass(frozen=True)
class TokenMap:
    """The teacher's tokens as pieces of a student: those of token ``i`` are ``pieces[starts[i] : starts[i + 1]]``.

    ``starts`` int32 (n_vocab + 1,), ``pieces`` int32 (n_pieces,). Every token has at least one piece.
    """

    starts: NDArray[np.int32]
    pieces: NDArray[np.int32]

    def first(self, ids: NDArray[Any]) -> NDArray[np.int32]:
        """Return the first piece of each token; of the same shape as ``ids``."""
        return self.pieces[self.starts[ids]]

    def split(self, ids: Sequence[int] | NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the pieces of some tokens (n_pieces,), and for each piece the place of its token in ``ids``."""
        tokens = np.asarray(ids, np.int64)
        counts = self.starts[tokens + 1] - self.starts[tokens]
        places = np.repeat(np.arange(len(tokens)), counts)
        in_token = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.pieces[self.starts[tokens[places]] + in_token], places


@dataclass(frozen=True)
class PrunedVocabulary:
    """The text tokens that a student keeps, in the teacher's ids and order: the student's ids are their places.

    ``tokens``: the teacher's tokenizer. With every token that merges make it has the two that are merged.
    """

    tokens: Tokens
    token_ids: tuple[int, ...]

    @property
    def n_removed(self) -> int:
        """The number of text tokens that the student does not have."""
        return self.tokens.end - len(self.token_ids)

    def student_id(self, token_id: int) -> int | None:
        """Return the student's id of a token of the teacher, or None if the student does not have it."""
        return self._student_ids.get(token_id) if token_id < self.tokens.end else token_id - self.n_removed

    @cached_property
    def _student_ids(self) -> dict[int, int]:
        return {token: place for place, token in enumerate(self.token_ids)}

    @cached_property
    def tokenizer_json(self) -> bytes:
        """The tokenizer.json of the student: it encodes to kept tokens only, and decodes as the teacher's does."""
        settings: dict[str, Any] = json.loads(self.tokens.file.read_bytes())
        bpe = settings["model"]
        by_symbol = {symbol: self.student_id(token) for symbol, token in bpe["vocab"].items()}
        bpe["vocab"] = {symbol: token for symbol, token in by_symbol.items() if token is not None}
        bpe["merges"] = [merge for merge in bpe["merges"] if "".join(_merged(merge)) in bpe["vocab"]]
        for token in settings["added_tokens"]:
            token["id"] = self.student_id(token["id"])
        special = (settings.get("post_processor") or {}).get("special_tokens", {})
        for template in special.values():
            template["ids"] = [self.student_id(token) for token in template["ids"]]
        return json.dumps(settings, ensure_ascii=False).encode()

    def token_map(self, n_vocab: int) -> TokenMap:
        """Return the teacher's ``n_vocab`` tokens as pieces of the student.

        The pieces of a token that is not kept are those into which the student's tokenizer divides it.
        """
        bpe = Tokenizer.from_buffer(self.tokenizer_json).model
        assert isinstance(bpe, models.BPE)
        pieces: list[list[int]] = []
        for token in range(n_vocab):
            kept = self.student_id(token)
            symbols = str(self.tokens.tokenizer.id_to_token(token)) if kept is None else ""
            pieces.append([kept] if kept is not None else [piece.id for piece in bpe.tokenize(symbols)])
        starts = np.cumsum([0, *map(len, pieces)]).astype(np.int32)
        return TokenMap(starts, np.array([piece for of_token in pieces for piece in of_token], np.int32))


def first_tokens(tokens: Tokens, n_kept: int) -> PrunedVocabulary:
    """Return a vocabulary of the first ``n_kept`` text tokens.

    Raises :class:`AskdError` when the teacher has no more.
    """
    if n_kept >= tokens.end:
        raise AskdError(
            f"{_KEY} = {n_kept}: {tokens.path} has {tokens.end} text tokens: keep fewer, or set student.vocabulary=null"
        )
    return PrunedVocabulary(tokens, tuple(range(n_kept)))


def shared_tokens(tokens: Tokens, student: Tokens) -> PrunedVocabulary | None:
    """Return the vocabulary that a student's tokenizer has of its teacher's ``tokens``; None if it has another one."""
    symbols, of_student = tokens.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    kept = sorted(token for symbol, token in symbols.items() if token < tokens.end and symbol in of_student)
    vocabulary = PrunedVocabulary(tokens, tuple(kept))
    ids = {symbol: vocabulary.student_id(token) for symbol, token in symbols.items()}
    return vocabulary if of_student == {symbol: token for symbol, token in ids.items() if token is not None} else None


def choose_tokens(tokens: Tokens, ranked: Iterable[int], required: Collection[int], n_kept: int) -> PrunedVocabulary:
    """Return a vocabulary of ``n_kept`` text tokens.

    It has the bytes and the ``required`` tokens, then the first ``ranked`` ones, then the first ones of the teacher's
    order. Each needs the tokens of which it is merged, so that a tokenizer finds it.

    Raises :class:`AskdError` when the teacher has no more tokens, or when the required ones are more.
    """
    first_tokens(tokens, n_kept)  # raises where there are not so many
    if tokens.multilingual and tokens.tokenizer.token_to_id("") is None:
        raise AskdError(f"{_KEY}: {tokens.path} has no token without text, by which engines know a multilingual model")
    parts = _parts(tokens.file.read_bytes())
    kept = {token for token in range(tokens.end) if token not in parts}
    for token in sorted(i for i in required if i < tokens.end):
        kept |= _with_parts(token, parts, kept)
    if len(kept) > n_kept:
        raise AskdError(f"{_KEY} = {n_kept}: bytes and the tokens that engines suppress are {len(kept)}: keep more")
    for token in (*(i for i in ranked if i < tokens.end), *range(tokens.end)):
        if len(kept) == n_kept:
            break
        added = _with_parts(token, parts, kept)
        if len(kept) + len(added) <= n_kept:
            kept |= added
    return PrunedVocabulary(tokens, tuple(sorted(kept)))


@lru_cache(maxsize=2)
def _parts(tokenizer_json: bytes) -> dict[int, tuple[int, int]]:
    """Return the two tokens of which each token is merged; bytes have none."""
    bpe: dict[str, Any] = json.loads(tokenizer_json)["model"]
    ids: dict[str, int] = bpe["vocab"]
    merges = [_merged(merge) for merge in bpe["merges"]]
    return {ids[left + right]: (ids[left], ids[right]) for left, right in merges}


def _merged(merge: str | Sequence[str]) -> tuple[str, str]:
    """Return the two symbols of a merge, which older tokenizer files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_parts(token: int, parts: Mapping[int, tuple[int, int]], kept: Collection[int]) -> set[int]:
    """Return a token and all tokens of which it is merged, step by step, without those that are kept already."""
    added, open_tokens = set[int](), [token]
    while open_tokens:
        current = open_tokens.pop()
        if current not in kept and current not in added:
            added.add(current)
            open_tokens += parts[current]
    return added
