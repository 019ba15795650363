"""How sure an error rate is: the bootstrap over utterances of Bisani and Ney (ICASSP 2004)."""

from collections.abc import Sequence

import numpy as np
from kaldialign import bootstrap_wer_ci, edit_distance

_REPLICATIONS = 10_000


def wer_interval(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of the WER of normalised texts, not below 0."""
    found = bootstrap_wer_ci(_words(references), _words(hypotheses), replications=_REPLICATIONS)
    return max(0.0, float(found["ci95min"])), float(found["ci95max"])


def wer_difference(
    references: Sequence[str], hypotheses: Sequence[str], baseline: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Return WER(hypotheses) - WER(baseline) on the same normalised references, and how sure it is.

    ``value`` is the difference (negative: better than the baseline), ``low`` and ``high`` its 95 % interval over
    utterances drawn in pairs, ``p_improvement`` the share of draws in which the WER is lower than the baseline's.
    """
    words, ours, theirs = _words(references), _words(hypotheses), _words(baseline)
    n_words = np.asarray([len(r) for r in words])
    extra = np.asarray([_errors(r, h) - _errors(r, b) for r, h, b in zip(words, ours, theirs, strict=True)])
    rng = np.random.default_rng(seed)
    differences = np.empty(_REPLICATIONS)
    for i in range(_REPLICATIONS):
        drawn = rng.integers(len(words), size=len(words))
        differences[i] = extra[drawn].sum() / max(n_words[drawn].sum(), 1)
    low, high = np.percentile(differences, [2.5, 97.5])
    paired = bootstrap_wer_ci(words, theirs, ours, replications=_REPLICATIONS)
    return {
        "value": float(extra.sum() / n_words.sum()),
        "low": float(low),
        "high": float(high),
        "p_improvement": float(paired["p_s2_improv_over_s1"]),
    }


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def _errors(reference: list[str], hypothesis: list[str]) -> int:
    return int(edit_distance(reference, hypothesis)["total"])
