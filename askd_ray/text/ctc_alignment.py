"""Where the classes of a CTC head are: the most probable path that writes a class sequence (forced alignment).

A path has one class per position; :mod:`askd_ray.models.ctc_decoding` says what it writes. Log-probabilities are of
shape ``(n_positions, n_classes)``, float32, in nats.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray

from askd_ray.text.units import BLANK

LogProbs = NDArray[np.float32]
Classes = tuple[int, ...]


@dataclass(frozen=True)
class ClassSpans:
    """Where the classes of a sequence are: the position where each starts, and where it is most probable.

    ``end`` is the position after the last one; ``probs`` are the probabilities at ``peaks``.
    """

    starts: tuple[int, ...]
    peaks: tuple[int, ...]
    end: int
    probs: tuple[float, ...]


def greedy_path(log_probs: LogProbs) -> NDArray[np.int64]:
    """Return the most probable path ``(n_positions,)``: the most probable class of each position."""
    return log_probs.argmax(axis=-1)


def class_spans(log_probs: LogProbs, classes: Classes) -> ClassSpans:
    """Return where the classes are in the most probable path that writes them.

    Raises :class:`ValueError` for a sequence that needs more positions than there are.
    """
    if not classes:
        return ClassSpans((), (), 0, ())
    path = greedy_path(log_probs)
    if tuple(path[class_starts(path)].tolist()) != classes:
        used = sorted({BLANK, *classes})
        targets = torch.tensor([[used.index(c) for c in classes]])
        if len(classes) + int((targets[:, 1:] == targets[:, :-1]).sum()) > len(log_probs):
            raise ValueError(f"{len(classes)} classes do not fit into {len(log_probs)} positions")
        part = torch.from_numpy(np.ascontiguousarray(log_probs[:, used]))[None]
        aligned = torchaudio.functional.forced_align(part, targets, blank=BLANK)[0][0]
        path = np.array(used)[aligned.numpy()]
    starts = np.flatnonzero(class_starts(path))
    ends = np.append(starts[1:], len(path))
    on_path = np.where(path == BLANK, -np.inf, log_probs[np.arange(len(path)), path])
    peaks = [int(start + on_path[start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
    probs = [math.exp(on_path[peak]) for peak in peaks]
    return ClassSpans(tuple(starts.tolist()), tuple(peaks), int(np.flatnonzero(path)[-1]) + 1, tuple(probs))


def class_starts(path: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return at which positions of a path a class of its sequence starts."""
    before = np.concatenate([[BLANK], path[:-1]])[: len(path)]
    return (path != BLANK) & (path != before)
