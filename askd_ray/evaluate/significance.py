"""How sure an error rate is: the bootstrap over utterances of Bisani and Ney (ICASSP 2004), paired over models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

N_DRAWS = 10_000
_CHUNK = 2_000_000  # utterances drawn at a time: 16 MB

Array = NDArray[np.float64]


class Rate(TypedDict):
    """A word error rate and its 95 % interval, [low, high]."""

    wer: float
    wer_ci95: list[float]


class RateDifference(TypedDict):
    """WER of a model minus WER of the baseline: below 0 it is better.

    ``low`` and ``high`` are the 95 % interval; ``p_improvement`` is the share of draws in which the model's WER is
    lower (a draw in which both are equal is none).
    """

    value: float
    low: float
    high: float
    p_improvement: float


class Comparison(TypedDict):
    """Models on the same utterances: each one's WER, and the others against the baseline, by name."""

    models: dict[str, Rate]
    against_baseline: dict[str, RateDifference]


@dataclass(frozen=True)
class BootstrapDraws:
    """Error and word counts of a set (row 0) and of :data:`N_DRAWS` bootstrap samples of it.

    ``errors`` has shape ``(1 + N_DRAWS, n_models)``, ``words`` ``(1 + N_DRAWS, 1)``. All models are counted on the same
    samples. The sum of two sets' is their pool, each resampled by itself.
    """

    errors: Array
    words: Array

    def __add__(self, other: "BootstrapDraws") -> "BootstrapDraws":
        return BootstrapDraws(self.errors + other.errors, self.words + other.words)

    @property
    def rates(self) -> Array:
        """Errors a word, ``(1 + N_DRAWS, n_models)``; a sample without a word counts as one word."""
        return self.errors / np.maximum(self.words, 1)


def draw(errors: NDArray[np.int64], words: NDArray[np.int64], seed: int) -> BootstrapDraws:
    """Resample utterances with replacement, as many as there are, :data:`N_DRAWS` times.

    ``errors`` are those of each utterance by each model, ``(n_utterances, n_models)``, ``words`` the words of its
    reference, ``(n_utterances,)``. Sets that are added or averaged need seeds of their own, or they vary together.
    """
    n = len(words)
    counted = np.column_stack([errors, words]).astype(np.float64)  # sums of whole numbers: exact in any order
    rng = np.random.default_rng(seed)
    sums = [counted.sum(axis=0, keepdims=True)]
    chunk = max(1, _CHUNK // n)
    for start in range(0, N_DRAWS, chunk):
        rows = min(chunk, N_DRAWS - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each utterance was drawn
        sums.append(times.astype(np.float64) @ counted)
    all_sums = np.concatenate(sums)
    return BootstrapDraws(all_sums[:, :-1], all_sums[:, -1:])


def compare(rates: Array, models: Sequence[str], baseline: str) -> Comparison:
    """Return rates, intervals and differences of ``models``, from ``rates`` of shape ``(1 + N_DRAWS, n_models)``.

    These are :attr:`BootstrapDraws.rates` of a set or a pool, or a mean of several sets' rates (the macro mean: every
    set counts equally). Intervals are percentiles of the draws.
    """
    of_baseline = rates[:, models.index(baseline)]
    return {
        "models": {name: _rate(rates[:, i]) for i, name in enumerate(models)},
        "against_baseline": {
            name: _difference(rates[:, i] - of_baseline) for i, name in enumerate(models) if name != baseline
        },
    }


def verdict(difference: RateDifference) -> Literal["yes", "no", "cannot tell"]:
    """Say whether the WER is lower than the baseline's; ``cannot tell`` where the 95 % interval contains 0."""
    if difference["high"] < 0:
        return "yes"
    return "no" if difference["low"] > 0 else "cannot tell"


def _rate(drawn: Array) -> Rate:
    return {"wer": float(drawn[0]), "wer_ci95": _interval(drawn[1:])}


def _difference(drawn: Array) -> RateDifference:
    low, high = _interval(drawn[1:])
    return {"value": float(drawn[0]), "low": low, "high": high, "p_improvement": float((drawn[1:] < 0).mean())}


def _interval(drawn: Array) -> list[float]:
    return [float(x) for x in np.percentile(drawn, [2.5, 97.5])]
