"""Greedy speculative decoding: a student drafts, its teacher checks (Leviathan et al. 2023, arXiv 2211.17192).

transformers' assisted generation does not fit: it gives both models the same 3,000 frames, but a student needs the
trimmed window that it was trained on; and it does not count accepted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.errors import AskdError
from askd_ray.models.generate import GreedySelector
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens, max_tokens

N_DRAFTED = 5


@dataclass(frozen=True)
class SpeculativeResult:
    """The teacher's greedy token ids, without prompt and end token, and the work they took.

    The draft model proposed ``n_drafted`` tokens, with end tokens. The teacher accepted ``n_accepted`` of them, and its
    decoder made ``n_passes`` forward passes.
    """

    token_ids: list[int]
    n_drafted: int
    n_accepted: int
    n_passes: int


def check_vocabularies(teacher: Tokens, draft: Tokens) -> None:
    """Check that both models have the same vocabulary.

    Raises :class:`AskdError` when their vocabularies differ.
    """
    if teacher.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise AskdError(
            f"{draft.path} cannot draft for {teacher.path}: speculative decoding needs models of one vocabulary"
        )


@torch.no_grad()
def speculate(
    teacher: WhisperForConditionalGeneration,
    draft: WhisperForConditionalGeneration,
    tokens: Tokens,
    log_mels: tuple[torch.Tensor, torch.Tensor],
    prompt: Sequence[int],
    n_drafted: int = N_DRAFTED,
) -> SpeculativeResult:
    """Return the teacher's greedy tokens for one clip, as :func:`~askd_ray.models.generate.greedy`, in fewer passes.

    ``log_mels`` ``(1, n_mels, n_frames)`` are the teacher's window and the draft model's. In each round the draft model
    proposes up to ``n_drafted`` tokens. One pass of the teacher accepts the tokens that it would have chosen too, and
    adds one.

    The result can differ from greedy decoding only where two tokens are equally likely up to rounding: a pass over
    several tokens sums in another order than a pass over one.
    """
    check, propose = _CachedDecoder(teacher, log_mels[0]), _CachedDecoder(draft, log_mels[1])
    choose = GreedySelector(teacher)
    max_new_tokens = max_tokens(log_mels[0].shape[-1] / FRAMES_PER_S)
    written: list[int] = []
    n_proposed = n_accepted = n_passes = 0
    while len(written) < max_new_tokens and tokens.end not in written:
        ids, ahead = [*prompt, *written], list[int]()
        n_to_draft = min(n_drafted, max_new_tokens - len(written) - 1)
        while len(ahead) < n_to_draft and tokens.end not in ahead:
            ahead += choose(propose.logits([*ids, *ahead], 1), at_begin=not written and not ahead)[0].tolist()
        checked = choose(check.logits([*ids, *ahead], len(ahead) + 1), at_begin=not written)[0].tolist()
        n_same = _common_prefix_length(ahead, checked)
        written += checked[: n_same + 1]
        n_proposed, n_accepted, n_passes = n_proposed + len(ahead), n_accepted + n_same, n_passes + 1
    return SpeculativeResult(list(takewhile(lambda i: i != tokens.end, written)), n_proposed, n_accepted, n_passes)


class _CachedDecoder:
    """A decoder with a cache for a growing text whose end may change; it keeps the cache of the unchanged part."""

    def __init__(self, model: WhisperForConditionalGeneration, log_mel: torch.Tensor):
        self._model = model
        self._states = encode(model, log_mel).states
        self._cache: EncoderDecoderCache | None = None
        self._read: list[int] = []

    def logits(self, ids: list[int], n_last: int) -> torch.Tensor:
        """Return the logits ``(1, n_last, n_vocab)`` that follow each of the last ``n_last`` ids."""
        n_same = min(_common_prefix_length(self._read, ids), len(ids) - n_last)
        if self._cache is not None and n_same < len(self._read):
            self._cache.crop(n_same - len(self._read))
        out = self._model.model.decoder(
            input_ids=torch.tensor([ids[n_same:]], device=self._states.device),
            encoder_hidden_states=self._states,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self._read = out.past_key_values, ids
        return self._model.proj_out(out.last_hidden_state[:, -n_last:])


def _common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
