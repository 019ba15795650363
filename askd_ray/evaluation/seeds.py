"""Compares presets over seeds; the seed is the sampling unit: would another run of this recipe also be better?"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from askd_ray.errors import AskdError
from askd_ray.results.timing import Speed


class SeedStatistics(TypedDict):
    """WERs of one preset: mean, standard deviation (n - 1) and 95 % t-interval; both are None for a single seed."""

    wers: list[float]
    mean: float
    std: float | None
    ci95: list[float] | None


class SeedDifference(TypedDict):
    """Mean difference to the reference (below 0: better), its 95 % t-interval, and two two-sided p-values.

    ``p_t`` comes from the t-test (None for one seed, or when all differences are equal), ``p_sign_flip`` from the
    permutation test.
    """

    value: float
    ci95: list[float] | None
    p_t: float | None
    p_sign_flip: float


class SeedComparison(TypedDict):
    """Presets by name, and the difference of each preset to ``against``."""

    against: str | float
    presets: dict[str, SeedStatistics]
    differences: dict[str, SeedDifference]


class DomainComparison(TypedDict):
    """The arms of a study in one domain: against the arm ``study.against``, and against the teacher."""

    arm: SeedComparison
    teacher: SeedComparison


class StudyResult(TypedDict):
    """The result of `askd study`; ``comparison`` has the keys ``in_domain`` and ``out_of_domain``, each with sets."""

    seeds: list[int]
    comparison: dict[str, DomainComparison]
    speed: Speed


def compare_seeds(wers: Mapping[str, Sequence[float]], against: str | float) -> SeedComparison:
    """Compare presets over seeds: ``wers`` holds the WERs of each preset, in the same order of seeds.

    ``against`` is one of the presets, or a number. For a preset, differences are taken seed by seed (a paired t-test).
    A number has no seeds, such as a teacher's WER, and counts as exactly known (a one-sample t-test).

    The t-test assumes that the differences are normal; a few seeds cannot confirm this. The permutation test assumes
    only that, without a true difference, a difference is as likely as its negative. Its p-value is the share of the 2^n
    choices of signs of n differences whose mean is at least as far from 0. It is exact up to 13 seeds; with more, signs
    are random. The p-value cannot be below 2 / 2^n: 0.25 with three seeds, 0.0625 with five, 0.031 with six. So with
    fewer than six seeds this test never reaches 0.05.

    Raises :class:`AskdError` for no seeds, an unknown preset, or unequal numbers of seeds.
    """
    if isinstance(against, str) and against not in wers:
        raise AskdError(f"seeds: {against!r} is not among the presets: {', '.join(wers)}")
    base = np.asarray(wers[against]) if isinstance(against, str) else np.asarray(against)
    for name, values in wers.items():
        if not values:
            raise AskdError(f"seeds: {name} has no runs")
        if isinstance(against, str) and len(values) != len(wers[against]):
            raise AskdError(
                f"seeds: {name} has {len(values)} runs and {against} has {len(wers[against])}: both need the same seeds"
            )
    return {
        "against": against,
        "presets": {name: _over_seeds(values) for name, values in wers.items()},
        "differences": {
            name: _difference(np.asarray(values) - base) for name, values in wers.items() if name != against
        },
    }


def _over_seeds(wers: Sequence[float]) -> SeedStatistics:
    values = np.asarray(wers, dtype=np.float64)
    return {
        "wers": values.tolist(),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "ci95": _t_interval(values),
    }


def _difference(differences: NDArray[np.float64]) -> SeedDifference:
    differences = np.round(differences, 12)  # rounding errors are no differences
    return {
        "value": float(differences.mean()),
        "ci95": _t_interval(differences),
        "p_t": _t_test(differences),
        "p_sign_flip": _sign_flip(differences),
    }


def _t_test(differences: NDArray[np.float64]) -> float | None:
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    test: Any = stats.ttest_1samp(differences, 0.0)
    return float(test.pvalue)


def _sign_flip(differences: NDArray[np.float64]) -> float:
    if len(differences) < 2:  # both signs are equally far from 0
        return 1.0
    whole = np.rint(1e9 * differences)  # sums of whole numbers are exact, so that equal means compare as equal
    test = stats.permutation_test((whole,), np.mean, permutation_type="samples", vectorized=True, rng=0)
    return float(test.pvalue)


def _t_interval(values: NDArray[np.float64]) -> list[float] | None:
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:  # scipy's interval is NaN then
        return [float(values[0])] * 2
    return [float(end) for end in stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))]
