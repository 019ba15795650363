"""Scores as tables for the terminal: the headline, the verdict, the sets, and the conditions of the audio."""

from collections.abc import Callable, Mapping

from rich.console import Group

from askd_ray.evaluation.significance import verdict
from askd_ray.progress import Table
from askd_ray.results.headline import HEAD, headline
from askd_ray.results.texts import count, difference, latency, speed_verdicts, wer
from askd_ray.results.timing import ModelSpeed, Speed
from askd_ray.results.wer import DomainScores, Rate, Scores, domains

_ANSWERS = {"yes": "yes", "no": "no", "cannot tell": "cannot tell (95 % interval contains 0)"}


def table(scores: Scores) -> Group:
    """Return the headline, verdicts, and tables of WERs in percent with their 95 % intervals, one column per model."""
    parts: list[str | Table] = [_headline(scores), *verdicts(scores), _sets(scores)]
    if scores["conditions"]:
        parts.append(_conditions(scores))
    return Group(*parts)


def verdicts(scores: Scores) -> list[str]:
    """Return for each model, in domain and out of domain, whether its WER is lower than the baseline's.

    The answer is about the mean of the sets. With several sets, the answer about all words follows.
    """
    return [
        f"{name} against {scores['baseline']}, {place} ({count(len(domain['sets']), 'set')}): " + _answer(domain, name)
        for place, domain in domains(scores).items()
        for name in domain["macro"]["against_baseline"]
    ]


def _answer(domain: DomainScores, name: str) -> str:
    macro, pooled = (domain[kind]["against_baseline"][name] for kind in ("macro", "pooled"))
    answer = f"lower WER: {_ANSWERS[verdict(macro)]}, {difference(macro)}"
    return answer if len(domain["sets"]) == 1 else f"{answer}; word-weighted: {verdict(pooled)}, {difference(pooled)}"


def _headline(scores: Scores) -> Table:
    shown = Table(title="WER (mean of the sets, 95 %), runaways, words where nobody speaks", title_justify="left")
    for i, name in enumerate(HEAD):
        shown.add_column(name, justify="left" if i < 2 else "right")
    for row in headline(scores):
        shown.add_row(*row)
    return shown


def _sets(scores: Scores) -> Table:
    shown = _table("WER in %, with 95 % intervals", scores, "set", "utterances", "words")
    for place, domain in domains(scores).items():
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


def speed_table(speed: Speed) -> Group:
    """Return the result of :func:`askd_ray.evaluation.speed.measure_speed` as a table, one column per model."""
    models, hardware = speed["models"], speed["hardware"]
    title = f"Speed on {count(speed['clips'], 'clip')}, {hardware['cpu']}"
    shown = Table("", title=title, title_justify="left")
    for name in models:
        shown.add_column(name, justify="right")
    rows: dict[str, Callable[[ModelSpeed], str]] = {
        "RTFx": lambda m: f"{m['rtfx']:.1f}",
        "latency p50": lambda m: latency(m["p50_ms"]),
        "latency p95": lambda m: latency(m["p95_ms"]),
        "first call": lambda m: latency(m["first_call_ms"]),
        "threads": lambda m: str(m["threads"]),
        "memory": lambda m: f"{m['memory_mb']} MB",
    }
    for name, show in rows.items():
        shown.add_row(name, *(show(m) for m in models.values()))
    return Group(shown, *speed_verdicts(speed))


def _table(title: str, scores: Scores, *columns: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for i, name in enumerate((*columns, *scores["models"])):
        shown.add_column(name, justify="right" if i else "left")
    return shown


def _rates(scores: Scores, models: Mapping[str, Rate]) -> list[str]:
    return [wer(models[name]) for name in scores["models"]]
