"""Answers to scores: error rates, speed and the comparison with the baselines, as plain values for JSON."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluate.latency import Answers, percentile_ms, speedup
from askd_ray.evaluate.significance import wer_difference, wer_interval
from askd_ray.text.error_rate import count_character_errors, count_word_errors
from askd_ray.text.normalize import normalizer

STUDENT, TEACHER, STOCK = "student", "teacher", "teacher_stock"


def score(utterances: Sequence[Utterance], answers: Mapping[str, Answers], short_s: float) -> dict[str, Any]:
    """Return the scores of every system, and of the student against every other.

    ``systems`` holds one dict a system (see :func:`_score_one`), ``difference`` the student's WER minus that of each
    other one.

    Raises :class:`AskdError` when no reference has a word after normalisation.
    """
    references = _normalised(utterances, [u.text for u in utterances])
    if not any(references):
        raise AskdError("evaluate: no reference of the held-out split has a word after normalisation")
    durations_s = np.asarray([u.duration_s for u in utterances])
    short = durations_s < short_s
    texts = {name: _normalised(utterances, a.texts) for name, a in answers.items()}
    return {
        "n_eval": len(utterances),
        "short_s": short_s,
        "audio_min": round(float(durations_s.sum()) / 60, 3),
        "systems": {name: _score_one(references, texts[name], a, durations_s, short) for name, a in answers.items()},
        "difference": {
            name: wer_difference(references, texts[STUDENT], texts[name]) for name in answers if name != STUDENT
        },
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


def _normalised(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[str]:
    return [normalizer(u.language)(text).strip() for u, text in zip(utterances, texts, strict=True)]


def _score_one(
    references: Sequence[str],
    hypotheses: Sequence[str],
    answers: Answers,
    durations_s: "np.ndarray[Any, np.dtype[np.float64]]",
    short: "np.ndarray[Any, np.dtype[np.bool_]]",
) -> dict[str, Any]:
    words = count_word_errors(references, hypotheses)
    return {
        "wer": words.rate,
        "wer_ci95": list(wer_interval(references, hypotheses)),
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "n_words": words.n_reference,
        "cer": count_character_errors(references, hypotheses).rate,
        "rtfx": round(float(durations_s.sum() / answers.latency_s.sum()), 2),
        "p50_ms": percentile_ms(answers.latency_s, 50),
        "p95_ms": percentile_ms(answers.latency_s, 95),
        "p50_short_ms": percentile_ms(answers.latency_s[short], 50),
    }


def table(scores: Mapping[str, Any]) -> Group:
    """Return the scores as a table to print, a column a system, with the comparison below it."""
    title = f"{scores['n_eval']} held-out clips, {scores['audio_min']:.1f} min"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in scores["systems"]:
        shown.add_column(name.replace("_", ", "), justify="right")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "WER": lambda s: f"{s['wer']:.4f}",
        "  95 % interval": lambda s: "{:.3f} to {:.3f}".format(*s["wer_ci95"]),
        "  S / D / I": lambda s: f"{s['substitutions']} / {s['deletions']} / {s['insertions']}",
        "CER": lambda s: f"{s['cer']:.4f}",
        "RTFx": lambda s: f"{s['rtfx']:.1f}",
        "latency p50": lambda s: _ms(s["p50_ms"]),
        "latency p95": lambda s: _ms(s["p95_ms"]),
        f"p50 under {scores['short_s']:g} s": lambda s: _ms(s["p50_short_ms"]),
    }
    for name, show in rows.items():
        shown.add_row(name, *(show(s) for s in scores["systems"].values()))
    return Group(shown, *_verdict(scores))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _verdict(scores: Mapping[str, Any]) -> list[str]:
    lines = [
        f"WER against {name.replace('_', ', ')}: {100 * d['value']:+.2f} points (95 %: {100 * d['low']:+.2f} to "
        f"{100 * d['high']:+.2f}), better with probability {d['p_improvement']:.2f}"
        for name, d in scores["difference"].items()
    ]
    if scores["speedup_p50_short"] is not None:
        low, high = scores["speedup_p50_short_ci95"]
        baseline = scores["speedup_baseline"]
        lines.append(
            f"{scores['speedup_p50_short']:.1f}x as fast as {baseline.replace('_', ', ')} on the median of "
            f"{scores['speedup_clips']} clips under {scores['short_s']:g} s (95 %: {low:.1f} to {high:.1f}; "
            f"{_ms(scores['p50_short_ms'][STUDENT])} against {_ms(scores['p50_short_ms'][baseline])})"
        )
    return lines
