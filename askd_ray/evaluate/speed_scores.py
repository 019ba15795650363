"""Answers to speed: latencies of each system, and how much faster the student is, as plain values for JSON."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from askd_ray.evaluate.latency import Answers, percentile_ms, speedup

STUDENT, TEACHER, STOCK = "student", "teacher", "teacher_stock"


def score_latency(
    answers: Mapping[str, Answers], durations_s: NDArray[np.float64], short_s: float
) -> dict[str, dict[str, float | None]]:
    """Return RTFx and latency percentiles of every system on the same clips, of ``durations_s``, ``(n_clips,)``."""
    short = np.flatnonzero(durations_s < short_s)
    return {
        name: {
            "rtfx": round(float(durations_s.sum() / a.latency_s.sum()), 2),
            "p50_ms": percentile_ms(a.latency_s, 50),
            "p95_ms": percentile_ms(a.latency_s, 95),
            "p50_short_ms": percentile_ms(a.latency_s[short], 50),
        }
        for name, a in answers.items()
    }


def score_speed(answers: Mapping[str, Answers], baseline: str) -> dict[str, Any]:
    """Return how many times faster than ``baseline`` the student is on the median of the short clips of ``answers``.

    ``p50_short_ms`` holds the medians of both; all are None where there is no such clip.
    """
    ours, theirs = answers[STUDENT].latency_s, answers[baseline].latency_s
    faster = speedup(theirs, ours) if ours.size else None
    return {
        "speedup_baseline": baseline,
        "speedup_clips": int(ours.size),
        "speedup_p50_short": faster and faster["value"],
        "speedup_p50_short_ci95": faster and [faster["low"], faster["high"]],
        "p50_short_ms": {STUDENT: percentile_ms(ours, 50), baseline: percentile_ms(theirs, 50)},
    }


def speed_table(speed: Mapping[str, Any]) -> Group:
    """Return speed as a table to print, a column a system, with the speed-up below it.

    ``speed`` is what :func:`score_speed` returns, with :func:`score_latency`'s as ``systems``, and ``short_s``.
    """
    shown = Table(title="Speed, one clip at a time", title_justify="left")
    shown.add_column("")
    for name in speed["systems"]:
        shown.add_column(_shown(name), justify="right")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "RTFx": lambda s: f"{s['rtfx']:.1f}",
        "latency p50": lambda s: _ms(s["p50_ms"]),
        "latency p95": lambda s: _ms(s["p95_ms"]),
        f"p50 under {speed['short_s']:g} s": lambda s: _ms(s["p50_short_ms"]),
    }
    for name, show in rows.items():
        shown.add_row(name, *(show(s) for s in speed["systems"].values()))
    return Group(shown, *_faster(speed))


def _faster(speed: Mapping[str, Any]) -> list[str]:
    if speed["speedup_p50_short"] is None:
        return []
    low, high = speed["speedup_p50_short_ci95"]
    baseline, medians = speed["speedup_baseline"], speed["p50_short_ms"]
    return [
        f"{speed['speedup_p50_short']:.1f}x as fast as {_shown(baseline)} on the median of {speed['speedup_clips']} "
        f"clips under {speed['short_s']:g} s (95 %: {low:.1f} to {high:.1f}; {_ms(medians[STUDENT])} against "
        f"{_ms(medians[baseline])})"
    ]


def _shown(name: str) -> str:
    return name.replace("_", ", ")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
