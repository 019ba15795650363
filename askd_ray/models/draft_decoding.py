"""Decode with a draft: one decoder pass verifies many tokens (draft and verify, arXiv 2603.11243).

A greedy decoder needs a pass for each token. A pass over a draft gives greedy's token after each of its tokens at
once, so all tokens up to the first disagreement are greedy's, and greedy's token there, too. The next pass goes on from
there with the rest of the draft. The text is that of :func:`askd_ray.models.generate.greedy`, whatever the draft is;
only the number of passes depends on it. "The same" is up to rounding: a pass over many tokens multiplies matrices of
another shape, so where two tokens have equal logits up to rounding, either may be written.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

from askd_ray.models.draft import NGRAM_SIZE, Draft, ngram_draft
from askd_ray.models.generate import GreedySelector

_MAX_SKIPPED, _MAX_BACK = 8, 2  # draft tokens among which greedy's token is looked for


@dataclass(frozen=True)
class Verified:
    """A text without prompt and end token, and its cost.

    ``n_passes``: decoder passes, of which greedy decoding needs one for each token and one for the end token.
    ``n_accepted``: tokens that come from a draft.
    """

    token_ids: tuple[int, ...]
    n_passes: int
    n_accepted: int


class Decoder(Protocol):
    """A decoder with a cache of the tokens that it has read of one window."""

    n_passes: int
    """The number of passes until now."""

    def greedy_after(self, n_kept: int, ids: Sequence[int], n_prompt: int) -> list[int]:
        """Keep the first ``n_kept`` tokens in the cache, read ``ids`` after them, return greedy's token after each.

        The text begins after ``n_prompt`` tokens; nothing is returned for tokens in the prompt, except its last one. At
        least one token is returned; if it is fewer than there are, the others are still to be verified.
        """
        ...


@dataclass(frozen=True)
class DraftOptions:
    """``limit``: the largest number of tokens of a text; 0 is an empty text.

    ``max_entropy`` None is exact. A number is relaxed: a draft token with a lower entropy, in nats, is accepted though
    the decoder would write another one, and a draft of such tokens alone is not even read by the decoder. After a
    correction, the decoder must agree with one draft token first. ``ngram_size`` 0: no drafts from the text itself.
    """

    limit: int
    max_entropy: float | None = None
    ngram_size: int = NGRAM_SIZE


def decode_with_draft(
    decoder: Decoder, prompt: Sequence[int], end: int, draft: Draft, options: DraftOptions
) -> Verified:
    """Return the text that a decoder writes after a prompt, with a draft of that text.

    ``end`` is the end token. The decoder's cache may hold anything: it starts with no token of it.
    """
    if options.limit == 0:
        return Verified((), 0, 0)
    rest = _Rest(draft, options.max_entropy)
    if draft.token_ids and rest.all_sure:
        ids = draft.token_ids[: options.limit]
        return Verified(ids, 0, len(ids))
    written, n_read, n_accepted, n_passes = list[int](), 0, 0, decoder.n_passes
    while len(written) < options.limit:
        # The last token of a text is not read: the limit ends the text after it.
        drafted, sure = rest.tokens(written, options.ngram_size, options.limit - len(written) - 1)
        unread = [*prompt, *written][n_read:]
        best = decoder.greedy_after(n_read, [*unread, *drafted], len(prompt))
        agreed = [s or d == b for d, s, b in zip(drafted, sure, best[:-1], strict=False)]
        n_agreed = agreed.index(False) if False in agreed else len(agreed)
        ended = drafted.index(end) if end in drafted[:n_agreed] else None
        accepted = drafted[:n_agreed] if ended is None else drafted[:ended]
        written += accepted
        n_accepted += len(accepted)
        if ended is not None or best[n_agreed] == end:
            break
        written.append(best[n_agreed])
        n_read += len(unread) + n_agreed
        rest.align(n_agreed, best[n_agreed])
    return Verified(tuple(written), decoder.n_passes - n_passes, n_accepted)


class _Rest:
    """The part of a draft that is not verified yet."""

    def __init__(self, draft: Draft, max_entropy: float | None):
        self._ids = list(draft.token_ids)
        threshold = -math.inf if max_entropy is None else max_entropy
        self._sure = [e < threshold for e in draft.entropy]
        self._next, self._aligned = 0, True

    @property
    def all_sure(self) -> bool:
        """Whether every token can be accepted without the decoder."""
        return all(self._sure)

    def tokens(self, written: Sequence[int], ngram_size: int, n_max: int) -> tuple[list[int], list[bool]]:
        """Return the tokens to verify next, and whether each one is sure; from the text if the draft is used up."""
        ids, sure = self._ids[self._next :][:n_max], self._sure[self._next :][:n_max]
        if not ids:
            ids = ngram_draft(written, ngram_size)[:n_max] if ngram_size else []
            sure = [False] * len(ids)
        if sure and not self._aligned:
            sure[0] = False
        return ids, sure

    def align(self, n_agreed: int, token: int) -> None:
        """Drop what is verified: ``n_agreed`` tokens, and those up to greedy's ``token`` after them.

        If the draft has no such token nearby, it replaces one: a wrong guess costs a pass, as without a draft.
        """
        start = min(self._next + n_agreed, len(self._ids))
        after = range(start, min(start + _MAX_SKIPPED, len(self._ids)))
        before = range(start - 1, max(start - 1 - _MAX_BACK, -1), -1)
        found = next((i for i in (*after, *before) if self._ids[i] == token), start)
        self._next, self._aligned = min(found + 1, len(self._ids)), False


class TorchDecoder:
    """The decoder of a Whisper in torch, for one window with encoder states ``(1, n_positions, d_model)``."""

    def __init__(self, model: WhisperForConditionalGeneration, states: torch.Tensor):
        assert len(states) == 1
        self._model, self._states, self._choose = model, states, GreedySelector(model)
        self._cache: EncoderDecoderCache | None = None
        self.n_passes = 0

    @torch.no_grad()
    def greedy_after(self, n_kept: int, ids: Sequence[int], n_prompt: int) -> list[int]:
        """Read ``ids`` after the first ``n_kept`` tokens; see :class:`Decoder`."""
        self._crop(n_kept)
        self.n_passes += 1
        out = self._model.model.decoder(
            input_ids=torch.tensor([list(ids)], device=self._states.device),
            encoder_hidden_states=self._states,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        first = max(n_prompt - 1 - n_kept, 0)  # the last token of the prompt, if it is read now
        logits = self._model.proj_out(out.last_hidden_state[:, first:])
        return self._choose(logits, at_begin=n_kept < n_prompt)[0].tolist()

    def _crop(self, n_kept: int) -> None:
        """Keep the keys and values of the first tokens; those of the encoder states stay."""
        if n_kept == 0:
            self._cache = None
        if self._cache is not None:
            self._cache.crop(n_kept - self._cache.get_seq_length())  # minus the number of tokens to drop
