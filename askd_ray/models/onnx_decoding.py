"""Greedy decoding of several clips at once in ONNX Runtime: a pass reads the weights once for all of them.

A clip's text is the same to the last bit, alone and with any others: ONNX Runtime rounds a row of a product alike in
any number of rows (with the block size of :mod:`askd_ray.models.fused_layers`), and sums over a window alike with any
padding behind a multiple of some positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log1p

import numpy as np
from numpy.typing import NDArray

from askd_ray.models.onnx_folder import FusedModel

Array = NDArray[np.float32]


@dataclass
class ClipText:
    """The text of a clip while it is written: its tokens, and the sum of their log-probabilities.

    ``cross``: keys and values of the clip's window for each decoder layer, each ``(1, n_heads, n, width)``, of which
    the first ``n_positions`` are read. ``limit``: the most tokens. ``ended``: whether the end token was written; its
    log-probability is in the sum.
    """

    cross: Sequence[Array]
    n_positions: int
    limit: int
    token_ids: list[int] = field(default_factory=list[int])
    log_prob: float = 0.0
    ended: bool = False

    @property
    def is_open(self) -> bool:
        """Whether another token follows."""
        return not self.ended and len(self.token_ids) < self.limit


class GreedyDecoder:
    """The decoder of a Whisper; ``end`` is its end token. Any number of threads may call it in parallel."""

    def __init__(self, model: FusedModel, end: int):
        self._model, self._end = model, end
        self._not_first: list[int] = model.config["begin_suppress_tokens"]

    def write(self, clips: Sequence[ClipText], prompt: Sequence[int]) -> None:
        """Write the texts of clips; the prompt is that of all."""
        unread = [clip for clip in clips if clip.is_open]
        if not unread:
            return
        batch = DecoderBatch(self._model, unread)
        self._append(batch.clips, batch.read([prompt] * len(unread)), self._not_first)
        while n_open := sum(clip.is_open for clip in batch.clips):
            if 2 * n_open <= len(batch.clips):  # less often would waste more work, more often more copies
                batch.keep_open()
            tokens = [clip.token_ids[-1:] or [self._end] for clip in batch.clips]
            self._append(batch.clips, batch.read(tokens), [])

    def _append(self, clips: Sequence[ClipText], log_probs: Array, forbidden: list[int]) -> None:
        """Append the most probable token that is not forbidden to each open text, given its row of ``log_probs``."""
        removed = np.exp(log_probs[:, forbidden]).sum(axis=-1, dtype=np.float64)
        log_probs[:, forbidden] = -np.inf
        best = log_probs.argmax(axis=-1)
        for row, clip in enumerate(clips):
            if clip.is_open:
                token = int(best[row])
                clip.log_prob += float(log_probs[row, token]) - log1p(-min(float(removed[row]), 1.0 - exp(-20.0)))
                clip.ended = token == self._end
                clip.token_ids += [] if clip.ended else [token]


class DecoderBatch:
    """Clips, with the decoder's cache of the tokens that it has read."""

    def __init__(self, model: FusedModel, clips: Sequence[ClipText]):
        self._model, self.clips = model, list(clips)
        self._windows = {"lengths": np.array([clip.n_positions for clip in clips], np.int32)}
        parts = zip(*(clip.cross for clip in clips), strict=True)
        self._windows |= {name: _stacked(of_clips) for name, of_clips in zip(model.cross, parts, strict=True)}
        self._past = model.no_past(len(clips))

    def read(self, ids: Sequence[Sequence[int]]) -> Array:
        """Read the same number of tokens for each clip, and return the log-probabilities ``(n_clips, n_vocab)`` after
        the last one.
        """
        tokens = {"ids": np.array(ids, np.int64), "first": np.array(len(ids[0]) - 1), "past": self._past}
        outputs = self._model.decoder.run(["log_probs", "present"], {**self._windows, **tokens})
        log_probs, self._past = (np.asarray(x) for x in outputs)
        return log_probs[:, 0]

    def keep_open(self) -> None:
        """Drop the clips whose texts are complete."""
        rows = [row for row, clip in enumerate(self.clips) if clip.is_open]
        self.clips, self._past = [self.clips[row] for row in rows], self._past[:, rows]
        self._windows = {name: array[rows] for name, array in self._windows.items()}


def _stacked(parts: Sequence[Array]) -> Array:
    """Return keys or values ``(1, n_heads, n_positions, width)`` of several windows as those of a batch."""
    if len(parts) == 1:
        return parts[0]
    _, n_heads, _, width = parts[0].shape
    batch = np.zeros((len(parts), n_heads, max(part.shape[2] for part in parts), width), np.float32)
    for row, part in zip(batch, parts, strict=True):
        row[:, : part.shape[2]] = part[0]
    return batch
