"""The first part of a report: the verdict, and the word error rates behind it."""

from collections.abc import Iterator

from askd_ray.evaluation.report.document import (
    Answer,
    Answers,
    Block,
    Figure,
    ReportSection,
    TableBlock,
    Text,
    Tone,
)
from askd_ray.evaluation.report.plots import draw_dots, interval
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.evaluation.report.seeds import seed_answers, seed_section, studies
from askd_ray.evaluation.report.speed import speed_answers
from askd_ray.evaluation.significance import verdict
from askd_ray.results.headline import HEAD, headline
from askd_ray.results.texts import count, difference, difference_cell, percent, wer
from askd_ray.results.wer import Comparison, DomainScores, Scores, SetScores, domains

FEW_UTTERANCES = 30
"""With fewer utterances, percentile intervals are too narrow (docs/evaluation.md)."""


def verdict_section(evaluated: Evaluated) -> ReportSection:
    """Return the headline, and answer whether each student's WER is lower than the baseline's, and how fast it is."""
    scores, by_seed = evaluated.scores, studies(evaluated)
    answers = [answer for compared in by_seed.values() for answer in seed_answers(compared)] or [
        _answer(scores, student, place, domain)
        for student in evaluated.students
        for place, domain in domains(scores).items()
    ]
    remark = (
        "Yes and no: the whole 95 % interval of the difference is on one side of 0. Cannot tell: the interval "
        "contains 0; this does not mean that both are equal. "
    )
    if by_seed:
        remark += "Intervals are t-intervals over seeds: they do not cover other utterances."
    else:
        remark += "Intervals come from a paired bootstrap over utterances: they do not cover other training runs."
    verdict_blocks = Answers((*answers, *speed_answers(evaluated))), Text(remark, remark=True)
    summary = TableBlock(_HEADLINE, HEAD, tuple(headline(scores)), n_labels=2), Text(_PATHS_REMARK, remark=True)
    # A study has many models: its verdict first.
    return ReportSection("Verdict", (*verdict_blocks, *summary) if by_seed else (*summary, *verdict_blocks))


_HEADLINE = "WER (mean of the sets, 95 %), runaways, and words where nobody speaks"
_PATHS_REMARK = (
    "served: as the service decodes, with speech detection, chunks and a second decoding of doubtful transcripts; all "
    "other numbers of this report are of this path. raw: one greedy decoding, whatever the clip contains. Runaways: "
    "outputs that were ended by the decoding limit, or have more characters than anybody can say in the clip."
)


_TONES: dict[str, Tone] = {"yes": "good", "no": "bad", "cannot tell": "open"}


def _answer(scores: Scores, student: str, place: str, domain: DomainScores) -> Answer:
    baseline = scores["baseline"]
    macro, pooled = domain["macro"], domain["pooled"]
    answer = verdict(macro["against_baseline"][student])
    several = len(domain["sets"]) > 1
    why = f"{_against(macro, student, baseline)}; {count(domain['utterances'], 'utterance')}, "
    why += f"{count(domain['words'], 'word')}"
    if several:
        word_weighted = verdict(pooled["against_baseline"][student])
        why += f", mean of {len(domain['sets'])} sets. "
        why += f"Word-weighted: {word_weighted}, {_against(pooled, student, baseline)}"
    if domain["utterances"] < FEW_UTTERANCES:
        why += ". With so few utterances the interval is too narrow"
    return Answer(
        f"Is the WER of {student} lower than that of {baseline}, {place}?",
        answer.capitalize(),
        f"{why}.",
        _TONES[answer],
    )


def _against(of: Comparison, student: str, baseline: str) -> str:
    student_wer, baseline_wer = (percent(of["models"][model]["wer"]) for model in (student, baseline))
    compared = difference(of["against_baseline"][student])
    return f"{student_wer} % against {baseline_wer} %, a difference of {compared}"


def word_error_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield the sections about sets, domains and kinds of errors."""
    scores = evaluated.scores
    yield from (seed_section(name, compared, evaluated.kinds) for name, compared in studies(evaluated).items())
    yield ReportSection("Word error rate by set", (_sets(scores), *_left_out(evaluated)))
    yield ReportSection("In domain and out of domain", (_domains(scores), *_plot(evaluated)))
    yield ReportSection("Kinds of errors", (_kinds(scores), Text(_KINDS_REMARK, remark=True)))


def _compared(of: Comparison, model: str) -> tuple[str, str, str]:
    """Return a model's WER, its difference to the baseline, and the probability that it is better."""
    against = of["against_baseline"].get(model)
    if against is None:
        return wer(of["models"][model]), "", ""
    return wer(of["models"][model]), difference_cell(against), f"{against['p_improvement']:.2f}"


def _compared_head(scores: Scores) -> tuple[str, ...]:
    return "WER, % (95 %)", f"against {scores['baseline']}, points (95 %)", "better with probability"


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
    return TableBlock(
        "WER of each set, clean audio", ("set", "model", *_compared_head(scores)), tuple(rows), n_labels=2
    )


def _left_out(evaluated: Evaluated) -> Iterator[Block]:
    if len(evaluated.runs) > 1:
        text = f"Compared runs: {', '.join(evaluated.runs)}, on the sets and conditions that all of them have with the"
        left_out = f" Left out: {'; '.join(evaluated.left_out)}." if evaluated.left_out else " None was left out."
        yield Text(f"{text} same utterances. All models are scored on the same bootstrap samples.{left_out}")
    rows = [
        (run, name, reason, str(n))
        for run, stored in evaluated.stored.items()
        for name, reasons in stored["left_out"].items()
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
        for key, kind in (("macro", "mean of sets"), ("pooled", "word-weighted"))
        if key == "pooled" or len(domain["sets"]) > 1  # with one set, both are equal
        for model in scores["models"]
    ]
    return TableBlock(
        "WER over sets: the mean (every set counts equally), and word-weighted (every word counts equally)",
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
    intervals = {name: {model: interval(wers[model]) for model in scores["models"]} for name, wers in groups.items()}
    caption = "WER by set, with 95 % intervals: further left is better."
    return draw_dots("wer-by-set", caption, intervals, evaluated.kinds, "WER, %")


_KINDS_REMARK = (
    "Insertion rate: inserted words per reference word. Repeated 5-grams: repetitions of a sequence of five words "
    "that the reference does not repeat, a sign of a loop. Empty: outputs without words where the reference has words. "
    "ECE: expected calibration error, the distance of token confidence from the share of correct tokens. A dash: the "
    "model gives no value."
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
            str(m["runaways"]),
            str(m["empty"]),
            "-" if m["ece"] is None else f"{m['ece']:.3f}",
        )
        for name, one in _in_order(scores).items()
        for model, m in one["models"].items()
    ]
    caption = "Substitutions (S), deletions (D), insertions (I) and other errors; counts unless marked with %"
    return TableBlock(caption, ("set", "model", *head), tuple(rows), n_labels=2)
