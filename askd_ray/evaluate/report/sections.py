"""The first part of a report: the verdict, and the word errors behind it."""

from collections.abc import Iterator

from askd_ray.evaluate.report.document import (
    Answer,
    Answers,
    Block,
    Figure,
    ReportSection,
    TableBlock,
    Text,
    Tone,
    count,
    percent,
    points,
    rate,
)
from askd_ray.evaluate.report.plots import draw_dots, interval
from askd_ray.evaluate.report.runs import Evaluated
from askd_ray.evaluate.report.seeds import seed_answers, seed_section, studies
from askd_ray.evaluate.report.speed import speed_answers
from askd_ray.evaluate.scores import DomainScores, Scores, SetScores
from askd_ray.evaluate.significance import Comparison, verdict

FEW_UTTERANCES = 30
"""Below it, percentile intervals are too narrow (docs/evaluation.md)."""


def domains(scores: Scores) -> dict[str, DomainScores]:
    """Return the scores of sets in domain and out of domain, where there are any."""
    both = {"in domain": scores["in_domain"], "out of domain": scores["out_of_domain"]}
    return {place: domain for place, domain in both.items() if domain is not None}


def verdict_section(evaluated: Evaluated) -> ReportSection:
    """Say whether each student's WER is lower than the baseline's, and how many times as fast it is."""
    scores, by_seed = evaluated.scores, studies(evaluated)
    answers = [answer for compared in by_seed.values() for answer in seed_answers(compared)] or [
        _answer(scores, student, place, domain)
        for student in evaluated.students
        for place, domain in domains(scores).items()
    ]
    remark = (
        "Yes and no mean that the whole 95 % interval of the difference lies on one side of 0; cannot tell, which is "
        "not the same as equal, that it contains 0. "
    )
    if by_seed:
        remark += "Intervals are t-intervals over seeds: they say nothing of other utterances."
    else:
        remark += "Intervals are those of a paired bootstrap over utterances: they say nothing of another training."
    return ReportSection("Verdict", (Answers((*answers, *speed_answers(evaluated))), Text(remark, remark=True)))


_TONES: dict[str, Tone] = {"yes": "good", "no": "bad", "cannot tell": "open"}


def _answer(scores: Scores, student: str, place: str, domain: DomainScores) -> Answer:
    baseline = scores["baseline"]
    macro, pooled = domain["macro"], domain["pooled"]
    found = verdict(macro["against_baseline"][student])
    several = len(domain["sets"]) > 1
    why = f"{_against(macro, student, baseline)}; {count(domain['utterances'], 'utterance')}, "
    why += f"{count(domain['words'], 'word')}"
    if several:
        by_words = verdict(pooled["against_baseline"][student])
        why += f", mean of {len(domain['sets'])} sets. By words: {by_words}, {_against(pooled, student, baseline)}"
    if domain["utterances"] < FEW_UTTERANCES:
        why += ". So few utterances make the interval narrower than it should be"
    return Answer(
        f"Is the WER of {student} lower than that of {baseline}, {place}?",
        found.capitalize(),
        f"{why}.",
        _TONES[found],
    )


def _against(of: Comparison, student: str, baseline: str) -> str:
    wers, difference = of["models"], of["against_baseline"][student]
    return (
        f"{percent(wers[student]['wer'])} % against {percent(wers[baseline]['wer'])} %, a difference of "
        f"{points(difference)} points, lower with probability {difference['p_improvement']:.2f}"
    )


def word_error_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield the sections on sets, on domains and on kinds of errors."""
    scores = evaluated.scores
    yield from (seed_section(name, compared, evaluated.kinds) for name, compared in studies(evaluated).items())
    yield ReportSection("Word error rate by set", (_sets(scores), *_left_out(evaluated)))
    yield ReportSection("In domain and out of domain", (_domains(scores), *_plot(evaluated)))
    yield ReportSection("Kinds of errors", (_kinds(scores), Text(_KINDS_REMARK, remark=True)))


def _compared(of: Comparison, model: str) -> tuple[str, str, str]:
    """Return a model's WER, its difference to the baseline, and how probable it is that it is better."""
    difference = of["against_baseline"].get(model)
    if difference is None:
        return rate(of["models"][model]), "", ""
    return rate(of["models"][model]), points(difference), f"{difference['p_improvement']:.2f}"


def _compared_head(scores: Scores) -> tuple[str, ...]:
    return "WER, % (95 %)", f"against {scores['baseline']}, points (95 %)", "lower with probability"


def _in_order(scores: Scores) -> dict[str, SetScores]:
    return {name: scores["sets"][name] for domain in domains(scores).values() for name in domain["sets"]}


def _sets(scores: Scores) -> TableBlock:
    rows = [
        (
            f"{name} ({'in' if one['in_domain'] else 'out of'} domain; {count(one['utterances'], 'utterance')}, "
            f"{count(one['words'], 'word')}, {one['minutes']:.1f} min)",
            model,
            *_compared({"models": dict(one["models"]), "against_baseline": one["against_baseline"]}, model),
        )
        for name, one in _in_order(scores).items()
        for model in scores["models"]
    ]
    return TableBlock("WER of each set, as it is", ("set", "model", *_compared_head(scores)), tuple(rows), n_labels=2)


def _left_out(evaluated: Evaluated) -> Iterator[Block]:
    if len(evaluated.runs) > 1:
        same = f"Of {', '.join(evaluated.runs)} only sets and conditions are compared that all of them have, with the"
        without = f" Left out: {'; '.join(evaluated.left_out)}." if evaluated.left_out else " None was left out."
        yield Text(f"{same} same utterances; all models are scored on the same bootstrap samples.{without}")
    rows = [
        (run, name, reason, str(n))
        for run, stored in evaluated.stored.items()
        for name, reasons in stored.get("left_out", {}).items()
        for reason, n in reasons.items()
    ]
    if rows:
        yield TableBlock(
            "Rows of the sets that could not be used", ("run", "set", "reason", "rows"), tuple(rows), n_labels=3
        )


def _domains(scores: Scores) -> TableBlock:
    rows = [
        (f"{place} ({count(len(domain['sets']), 'set')}), {kind}", model, *_compared(domain[key], model))
        for place, domain in domains(scores).items()
        for key, kind in (("macro", "mean of sets"), ("pooled", "by words"))
        if key == "pooled" or len(domain["sets"]) > 1  # of one set they are the same
        for model in scores["models"]
    ]
    return TableBlock(
        "WER over sets: their mean, in which they count equally, and that of all their words",
        ("domain", "model", *_compared_head(scores)),
        tuple(rows),
        n_labels=2,
    )


def _plot(evaluated: Evaluated) -> tuple[Figure, ...]:
    scores = evaluated.scores
    several = {
        f"{place}, mean": domain["macro"]["models"]
        for place, domain in domains(scores).items()
        if len(domain["sets"]) > 1
    }
    groups = {**{name: one["models"] for name, one in _in_order(scores).items()}, **several}
    drawn = {name: {model: interval(wers[model]) for model in scores["models"]} for name, wers in groups.items()}
    caption = "WER by set, with 95 % intervals: to the left is better."
    return draw_dots("wer-by-set", caption, drawn, evaluated.kinds, "WER, %")


_KINDS_REMARK = (
    "Insertion rate: inserted words a reference word. Repeated 5-grams: how often a sequence of five words came again "
    "that the reference does not repeat, the trace of a loop. Runaways: outputs that the decoding limit ended and not "
    "the model. Empty: nothing heard where something was said. ECE: how far token confidence is from the share of "
    "tokens that are right. A dash: the model does not tell."
)


def _kinds(scores: Scores) -> TableBlock:
    head = ("S", "D", "I", "insertions, %", "CER, %", "repeated 5-grams", "runaways", "empty", "ECE")
    rows = [
        (
            name,
            model,
            *(str(m[kind]) for kind in ("substitutions", "deletions", "insertions")),
            percent(m["insertion_rate"]),
            percent(m["cer"]),
            str(m["repeated_5grams"]),
            "-" if m["runaways"] is None else str(m["runaways"]),
            str(m["empty"]),
            "-" if m["ece"] is None else f"{m['ece']:.3f}",
        )
        for name, one in _in_order(scores).items()
        for model, m in one["models"].items()
    ]
    caption = "Substitutions (S), deletions (D), insertions (I) and what else goes wrong, in counts where no % is said"
    return TableBlock(caption, ("set", "model", *head), tuple(rows), n_labels=2)
