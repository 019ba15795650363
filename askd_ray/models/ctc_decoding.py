"""CTC decoding: log-probabilities of positions to class sequences, and their log-probability.

A path has one class per position. Its class sequence has repetitions collapsed and then blanks removed (Graves et al.
2006, equation 2), so many paths write one sequence. Class 0 is the blank. Log-probabilities are of shape
``(n_positions, n_classes)``, float32, in nats.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from askd_ray.text.ctc_alignment import Classes, LogProbs, class_starts, greedy_path
from askd_ray.text.units import BLANK

MIN_LOG_PROB = -9.0  # classes below it do not extend a prefix: 1 in 8,000
_MAX_EXTENSIONS = 32  # of a prefix, at one position
_IMPOSSIBLE = -math.inf


def greedy_classes(log_probs: LogProbs) -> Classes:
    """Return the class sequence of the most probable path."""
    path = greedy_path(log_probs)
    return tuple(path[class_starts(path)].tolist())


def beam_classes(
    log_probs: LogProbs, beam_size: int, no_repeat_ngram_size: int = 0, min_log_prob: float = MIN_LOG_PROB
) -> Classes:
    """Return the class sequence with the highest log-probability that a prefix beam search or the greedy path finds.

    The search (Hannun et al. 2014, arXiv 1408.2873, without a language model) keeps ``beam_size`` prefixes at each
    position. It adds up the paths of a prefix, but not those that it has pruned; so the exact log-probabilities of its
    last prefixes and of the greedy sequence are compared. The result is never less probable than the greedy sequence.

    A sequence of ``no_repeat_ngram_size`` classes occurs only once; 0 disables the rule. Classes below
    ``min_log_prob`` do not extend a prefix.
    """
    found = _prefixes(log_probs, beam_size, no_repeat_ngram_size, min_log_prob)
    greedy = greedy_classes(log_probs)
    if greedy not in found and not _has_repeated_ngram(greedy, no_repeat_ngram_size):
        found.append(greedy)
    scores = sequence_log_probs(log_probs, found)
    return found[max(range(len(found)), key=scores.__getitem__)]


def sequence_log_probs(log_probs: LogProbs, sequences: Sequence[Classes]) -> list[float]:
    """Return the log-probability of each class sequence: that of all its paths together (Graves et al., equation 3).

    A sequence that needs more positions than there are has ``-inf``.
    """
    n_positions = len(log_probs)
    if n_positions == 0 or not sequences:
        return [_IMPOSSIBLE if sequence else 0.0 for sequence in sequences]
    used = sorted({c for sequence in sequences for c in sequence} | {BLANK})  # a small part of the vocabulary
    column = {c: i for i, c in enumerate(used)}
    targets = torch.tensor([column[c] for sequence in sequences for c in sequence], dtype=torch.long)
    part = torch.from_numpy(log_probs[:, used]).double()[:, None].expand(-1, len(sequences), -1)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    loss = functional.ctc_loss(part, targets, torch.full_like(lengths, n_positions), lengths, reduction="none")
    return (-loss).tolist()


def _prefixes(log_probs: LogProbs, beam_size: int, no_repeat_ngram_size: int, min_log_prob: float) -> list[Classes]:
    """Return the prefixes that a beam search has at the end."""
    beam: dict[Classes, tuple[float, float]] = {(): (0.0, _IMPOSSIBLE)}  # of paths that end in a blank, and of others
    for row in log_probs:
        extensions = _extensions(row, min_log_prob)
        following: dict[Classes, tuple[float, float]] = {}
        for prefix, (in_blank, in_class) in beam.items():
            total, last = _log_add(in_blank, in_class), prefix[-1] if prefix else BLANK
            _add(following, prefix, total + float(row[BLANK]), in_class + float(row[last]))
            for extension, log_prob in extensions:
                before = in_blank if extension == last else total  # without a blank between, a repetition collapses
                longer = (*prefix, extension)
                if before > _IMPOSSIBLE and not _ends_in_repeated_ngram(longer, no_repeat_ngram_size):
                    _add(following, longer, _IMPOSSIBLE, before + log_prob)
        best = sorted(following, key=lambda prefix: _log_add(*following[prefix]), reverse=True)[:beam_size]
        beam = {prefix: following[prefix] for prefix in best}
    return list(beam)


def _extensions(row: LogProbs, min_log_prob: float) -> list[tuple[int, float]]:
    """Return the classes of a position that may extend a prefix, with their log-probabilities."""
    classes = np.flatnonzero(row >= min_log_prob)
    if len(classes) > _MAX_EXTENSIONS:
        classes = classes[np.argpartition(-row[classes], _MAX_EXTENSIONS)[:_MAX_EXTENSIONS]]
    return [(c, float(row[c])) for c in classes.tolist() if c != BLANK]


def _add(beam: dict[Classes, tuple[float, float]], prefix: Classes, in_blank: float, in_class: float) -> None:
    found = beam.get(prefix, (_IMPOSSIBLE, _IMPOSSIBLE))
    beam[prefix] = (_log_add(found[0], in_blank), _log_add(found[1], in_class))


def _log_add(a: float, b: float) -> float:
    """Return ``log(exp(a) + exp(b))``; numpy's function takes ten times as long for two numbers."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == _IMPOSSIBLE else high + math.log1p(math.exp(low - high))


def _has_repeated_ngram(classes: Classes, n: int) -> bool:
    return any(_ends_in_repeated_ngram(classes[: i + 1], n) for i in range(len(classes)))


def _ends_in_repeated_ngram(classes: Classes, n: int) -> bool:
    """Whether the last ``n`` classes also occur before; False for 0."""
    if n == 0 or len(classes) <= n:
        return False
    return any(classes[i : i + n] == classes[-n:] for i in range(len(classes) - n))
