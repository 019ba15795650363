"""Scores as tables for the terminal: first the verdict, then the sets, then the conditions of the audio."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group

from askd_ray.evaluation.hallucination import Hallucinations
from askd_ray.evaluation.scores import DomainScores, Scores
from askd_ray.evaluation.significance import Rate, RateDifference, verdict
from askd_ray.progress import Table

_ANSWERS = {"yes": "yes", "no": "no", "cannot tell": "cannot tell (95 % interval contains 0)"}


def table(scores: Scores) -> Group:
    """Return verdicts, and tables of WERs in percent with their 95 % intervals, one column per model."""
    parts: list[str | Table] = [*verdicts(scores), _sets(scores)]
    if scores["conditions"]:
        parts.append(_conditions(scores))
    if scores["non_speech"] is not None:
        parts.append(_non_speech(scores["non_speech"]))
    return Group(*parts)


def verdicts(scores: Scores) -> list[str]:
    """Return for each model, in domain and out of domain, whether its WER is lower than the baseline's.

    The answer is about the mean of the sets. With several sets, the answer about all words follows.
    """
    return [
        f"{name} against {scores['baseline']}, {place} ({_count(len(domain['sets']), 'set')}): " + _answer(domain, name)
        for place, domain in _domains(scores).items()
        for name in domain["macro"]["against_baseline"]
    ]


def _domains(scores: Scores) -> dict[str, DomainScores]:
    both = {"in domain": scores["in_domain"], "out of domain": scores["out_of_domain"]}
    return {place: domain for place, domain in both.items() if domain is not None}


def _answer(domain: DomainScores, name: str) -> str:
    macro, pooled = (domain[kind]["against_baseline"][name] for kind in ("macro", "pooled"))
    answer = f"lower WER: {_ANSWERS[verdict(macro)]}, {_points(macro)}"
    return answer if len(domain["sets"]) == 1 else f"{answer}; word-weighted: {verdict(pooled)}, {_points(pooled)}"


def _points(d: RateDifference) -> str:
    low, high = 100 * d["low"], 100 * d["high"]
    return (
        f"{100 * d['value']:+.2f} points (95 %: {low:+.2f} to {high:+.2f}), better with probability "
        f"{d['p_improvement']:.2f}"
    )


def _sets(scores: Scores) -> Table:
    shown = _table("WER in %, with 95 % intervals", scores, "set", "utterances", "words")
    for place, domain in _domains(scores).items():
        for name in domain["sets"]:
            one = scores["sets"][name]
            shown.add_row(name, str(one["utterances"]), str(one["words"]), *_rates(scores, one["models"]))
        shown.add_section()
        if len(domain["sets"]) == 1:
            continue  # with one set, both means equal the set
        sizes = str(domain["utterances"]), str(domain["words"])
        shown.add_row(f"{place}, mean of sets", *sizes, *_rates(scores, domain["macro"]["models"]), style="bold")
        shown.add_row(f"{place}, word-weighted", *sizes, *_rates(scores, domain["pooled"]["models"]), end_section=True)
    return shown


def _conditions(scores: Scores) -> Table:
    shown = _table("WER in %, changed audio, all sets word-weighted", scores, "condition", "sets", "words")
    for name, one in scores["conditions"].items():
        shown.add_row(name, str(len(one["sets"])), str(one["words"]), *_rates(scores, one["models"]))
    return shown


def _non_speech(hallucinations: Hallucinations) -> Table:
    title = f"Clips without speech: {_count(hallucinations['clips'], 'clip')}, {hallucinations['minutes']:.1f} min"
    shown = Table("", *hallucinations["models"], title=title, title_justify="left")
    shown.add_row(
        "clips with words", *(f"{100 * m['share_with_words']:.1f} %" for m in hallucinations["models"].values())
    )
    shown.add_row("words per minute", *(f"{m['words_per_minute']:.1f}" for m in hallucinations["models"].values()))
    return shown


def speed_table(speed: Mapping[str, Any]) -> Group:
    """Return the result of :func:`askd_ray.evaluation.speed.measure_speed` as a table, one column per model."""
    models: Mapping[str, Mapping[str, Any]] = speed["models"]
    hardware = speed["hardware"]
    title = f"Speed on {speed['clips']} clips, {hardware['cpu']}"
    shown = Table("", title=title, title_justify="left")
    for name in models:
        shown.add_column(name, justify="right")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "RTFx": lambda m: f"{m['rtfx']:.1f}",
        "latency p50": lambda m: _ms(m["p50_ms"]),
        "latency p95": lambda m: _ms(m["p95_ms"]),
        "first call": lambda m: _ms(m["first_call_ms"]),
        "threads": lambda m: str(m.get("threads", hardware["threads"])),
        "memory": lambda m: f"{m['memory_mb']} MB",
    }
    for name, show in rows.items():
        shown.add_row(name, *(show(m) for m in models.values()))
    return Group(shown, *speed_verdicts(speed))


def speed_verdicts(speed: Mapping[str, Any]) -> list[str]:
    """Return for each model how many times faster it is than the reference of the speed-up, on the median clip."""
    lines: list[str] = []
    for name, speedups in speed["speedup"].items():
        clips, chosen = (f"{speed['clips']} clips", speedups["all"])
        if "short" in speedups:
            chosen = speedups["short"]
            clips = f"{chosen['clips']} clips under {speed['short_s']:g} s"
        times = f"{chosen['value']:.1f}x (95 %: {chosen['low']:.1f} to {chosen['high']:.1f})"
        lines.append(f"{name}: {times} as fast as {speed['speedup_against']} on the median of {clips}")
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _table(title: str, scores: Scores, *columns: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for i, name in enumerate((*columns, *scores["models"])):
        shown.add_column(name, justify="right" if i else "left")
    return shown


def _rates(scores: Scores, models: Mapping[str, Rate]) -> list[str]:
    return [
        "{:.2f} ({:.2f} to {:.2f})".format(*(100 * x for x in (models[name]["wer"], *models[name]["wer_ci95"])))
        for name in scores["models"]
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
