"""Speculative decoding, greedy: a student drafts, its teacher checks (Leviathan et al. 2023, arXiv 2211.17192).

Own code, because transformers' assisted generation gives both models the same 3,000 frames and its encoder takes no
fewer, so that a draft model cannot hear the trimmed window that it was trained on; nor does it count what was accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.errors import AskdError
from askd_ray.models.generate import Chooser
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens, max_tokens

N_DRAFTED = 5


@dataclass(frozen=True)
class Speculated:
    """The teacher's greedy token ids, without prompt and end token, and what they took.

    The draft proposed ``n_drafted`` tokens, end tokens among them, ``n_accepted`` of which the teacher wrote too; its
    decoder made ``n_passes`` forward passes.
    """

    token_ids: list[int]
    n_drafted: int
    n_accepted: int
    n_passes: int


def check_vocabularies(teacher: Tokens, draft: Tokens) -> None:
    """Check that one model writes the tokens of the other.

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
) -> Speculated:
    """Return for one clip what :func:`~askd_ray.models.generate.greedy` returns of the teacher, in fewer passes.

    ``log_mels`` ``(1, n_mels, n_frames)`` are the teacher's window and the draft's. In each turn the draft proposes up
    to ``n_drafted`` tokens, and one pass of the teacher keeps those that it would have written, and writes one more.

    The texts could differ only where the teacher finds two tokens equally likely up to rounding: a pass over several
    tokens sums in another order than one over each.
    """
    check, propose, choose = _Reader(teacher, log_mels[0]), _Reader(draft, log_mels[1]), Chooser(teacher)
    most = max_tokens(log_mels[0].shape[-1] / FRAMES_PER_S)
    written: list[int] = []
    n_proposed = n_accepted = n_passes = 0
    while len(written) < most and tokens.end not in written:
        ids, ahead = [*prompt, *written], list[int]()
        n_wanted = min(n_drafted, most - len(written) - 1)
        while len(ahead) < n_wanted and tokens.end not in ahead:
            ahead += choose(propose.logits([*ids, *ahead], 1), at_begin=not written and not ahead)[0].tolist()
        checked = choose(check.logits([*ids, *ahead], len(ahead) + 1), at_begin=not written)[0].tolist()
        n_same = _n_same(ahead, checked)
        written += checked[: n_same + 1]
        n_proposed, n_accepted, n_passes = n_proposed + len(ahead), n_accepted + n_same, n_passes + 1
    return Speculated(list(takewhile(lambda i: i != tokens.end, written)), n_proposed, n_accepted, n_passes)


class _Reader:
    """A decoder that reads a text which grows and is corrected: what it has read and still stands is in its cache."""

    def __init__(self, model: WhisperForConditionalGeneration, log_mel: torch.Tensor):
        self._model = model
        self._states = encode(model, log_mel).states
        self._cache: EncoderDecoderCache | None = None
        self._read: list[int] = []

    def logits(self, ids: list[int], n_last: int) -> torch.Tensor:
        """Return the logits ``(1, n_last, n_vocab)`` behind each of the last ``n_last`` of the ids."""
        n_same = min(_n_same(self._read, ids), len(ids) - n_last)
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


def _n_same(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
