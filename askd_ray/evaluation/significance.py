"""Confidence intervals of error rates: the bootstrap over utterances of Bisani and Ney (ICASSP 2004), paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from askd_ray.results.wer import Comparison, Rate, RateDifference

N_DRAWS = 10_000
_CHUNK = 2_000_000  # utterances per batch of samples: 16 MB

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BootstrapDraws:
    """Error and word counts of a set (row 0) and of :data:`N_DRAWS` bootstrap samples of it.

    ``errors`` has shape ``(1 + N_DRAWS, n_models)``, ``words`` ``(1 + N_DRAWS, 1)``. All models are counted on the same
    samples. The sum of the draws of two sets is that of their pool; each set is resampled separately.
    """

    errors: Array
    words: Array

    def __add__(self, other: "BootstrapDraws") -> "BootstrapDraws":
        return BootstrapDraws(self.errors + other.errors, self.words + other.words)

    @property
    def rates(self) -> Array:
        """Errors per word, ``(1 + N_DRAWS, n_models)``; a sample without words counts as one word."""
        return self.errors / np.maximum(self.words, 1)


def draw(errors: NDArray[np.int64] | Array, words: NDArray[np.int64], seed: int) -> BootstrapDraws:
    """Resample ``n_utterances`` utterances with replacement, :data:`N_DRAWS` times.

    ``errors`` are the errors of each model in each utterance, or another sum, ``(n_utterances, n_models)``; ``words``
    are the reference words, or tokens, ``(n_utterances,)``. Sets that are added or averaged need different seeds, or
    their samples are correlated.
    """
    n = len(words)
    counts = np.column_stack([errors, words]).astype(np.float64)  # sums of whole numbers are exact in any order
    rng = np.random.default_rng(seed)
    sums = [counts.sum(axis=0, keepdims=True)]
    chunk = max(1, _CHUNK // n)
    for start in range(0, N_DRAWS, chunk):
        rows = min(chunk, N_DRAWS - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each utterance was drawn
        sums.append(times.astype(np.float64) @ counts)
    all_sums = np.concatenate(sums)
    return BootstrapDraws(all_sums[:, :-1], all_sums[:, -1:])


def compare(rates: Array, models: Sequence[str], baseline: str) -> Comparison:
    """Return rates, intervals and differences of ``models``, from ``rates`` of shape ``(1 + N_DRAWS, n_models)``.

    ``rates`` are the :attr:`BootstrapDraws.rates` of a set or a pool, or the mean of the rates of several sets (the
    macro mean: every set counts equally). Intervals are percentiles over the bootstrap samples.
    """
    of_baseline = rates[:, models.index(baseline)]
    return {
        "models": {name: _rate(rates[:, i]) for i, name in enumerate(models)},
        "against_baseline": {
            name: _difference(rates[:, i] - of_baseline) for i, name in enumerate(models) if name != baseline
        },
    }


def verdict(difference: RateDifference) -> Literal["yes", "no", "cannot tell"]:
    """Return whether the WER is lower than the baseline's; ``cannot tell`` when the 95 % interval contains 0."""
    if difference["high"] < 0:
        return "yes"
    return "no" if difference["low"] > 0 else "cannot tell"


def _rate(drawn: Array) -> Rate:
    return {"wer": float(drawn[0]), "wer_ci95": interval(drawn[1:])}


def _difference(drawn: Array) -> RateDifference:
    low, high = interval(drawn[1:])
    return {"value": float(drawn[0]), "low": low, "high": high, "p_improvement": float((drawn[1:] < 0).mean())}


def interval(drawn: Array) -> list[float]:
    """Return the 95 % interval of bootstrap samples ``(n_draws,)``."""
    return [float(x) for x in np.percentile(drawn, [2.5, 97.5])]
