"""Drafts: texts that are written without the decoder, which only verifies them.

A CTC head writes a draft from the encoder states that the decoder reads anyway (draft and verify, arXiv 2603.11243).
Where no draft is left, the text itself gives one: what followed the last tokens when they were written before.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from askd_ray.text.ctc_alignment import class_starts, greedy_path
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import BLANK, CtcVocabulary

NGRAM_SIZE = 3
MAX_NGRAM_DRAFT = 8  # tokens: a wrong one costs little time, but not nothing
_MIN_LOG_PROB = -100.0  # 0 log 0 = 0


@dataclass(frozen=True)
class Draft:
    """A text in the tokens into which Whisper's tokenizer divides it, with the entropy of CTC at each, in nats.

    ``n_units``: the number of units that CTC wrote. Nobody speaks where there are none.
    """

    token_ids: tuple[int, ...]
    entropy: tuple[float, ...]
    n_units: int


EMPTY = Draft((), (), 0)


def ctc_draft(log_probs: NDArray[np.float32], vocabulary: CtcVocabulary, tokens: Tokens) -> Draft:
    """Return the draft of a window's log-probabilities ``(n_positions, n_classes)``: the most probable path.

    The entropy of a token is the largest one at the positions of its units. Whisper may divide the text differently
    than CTC, so units become text, and the text becomes tokens. Bytes that are no character are left out.
    """
    path = greedy_path(log_probs)
    starts = np.flatnonzero(class_starts(path))
    if not len(starts):
        return EMPTY
    spoken = path != BLANK
    entropy = np.zeros(len(path))
    entropy[spoken] = -(np.exp(log_probs[spoken]) * np.maximum(log_probs[spoken], _MIN_LOG_PROB)).sum(axis=-1)
    unit_entropy = np.maximum.reduceat(entropy, starts).tolist()
    chars = _characters(vocabulary.tokens(path[starts].tolist()), unit_entropy, tokens)
    text = "".join(c for c, _ in chars)
    ids, offsets = tokens.encode_with_offsets(text)
    if not text.strip():
        return Draft((), (), len(starts))
    first = len(text) - len(text.lstrip())
    in_text = [0.0, *(e for _, e in chars[first : first + len(text.strip())])]  # at " " + text.strip()
    token_entropy = tuple(max(in_text[start : max(end, start + 1)], default=0.0) for start, end in offsets)
    return Draft(tuple(ids), token_entropy, len(starts))


def ngram_draft(written: Sequence[int], size: int = NGRAM_SIZE, max_tokens: int = MAX_NGRAM_DRAFT) -> list[int]:
    """Return what followed the last ``size`` tokens the last time that they were written before; else nothing.

    Prompt lookup decoding: it helps where a speaker, or a model in a loop, repeats a phrase.
    """
    last = list(written[len(written) - size :])
    if len(last) < size or size == 0:
        return []
    for start in range(len(written) - size - 1, -1, -1):
        if list(written[start : start + size]) == last:
            return list(written[start + size : start + size + max_tokens])
    return []


def _characters(units: Sequence[int], entropy: Sequence[float], tokens: Tokens) -> list[tuple[str, float]]:
    """Return the characters that units write, each with the largest entropy of the units that write it."""
    to_text = codecs.getincrementaldecoder("utf-8")("ignore")
    characters, largest = list[tuple[str, float]](), 0.0
    for unit, unit_entropy in zip(units, entropy, strict=True):
        for byte in tokens.bytes_of(unit):
            largest = max(largest, unit_entropy)
            for character in to_text.decode(bytes([byte])):
                characters.append((character, largest))
                largest = 0.0
    return characters
