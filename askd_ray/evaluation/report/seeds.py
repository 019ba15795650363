"""The part of a report about a study: its arms over seeds, with the seed as the sampling unit."""

from collections.abc import Iterator, Mapping
from typing import cast

from askd_ray.evaluation.hypotheses import TEACHER
from askd_ray.evaluation.report.document import Answer, Figure, ReportSection, TableBlock, Text, Tone
from askd_ray.evaluation.report.plots import Interval, Kinds, draw_dots
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.evaluation.seeds import DomainComparison, SeedDifference, SeedStatistics, StudyResult
from askd_ray.results.texts import count, percent, points, points_in_words

_TONES: dict[str, Tone] = {"Yes": "good", "No": "bad", "Cannot tell": "open"}
_PLACES = {"in_domain": "in domain", "out_of_domain": "out of domain"}

Compared = Mapping[str, DomainComparison]
"""The comparisons of a study, by domain."""


def studies(evaluated: Evaluated) -> dict[str, Compared]:
    """Return the comparisons over seeds of the runs that are studies."""
    compared = dict[str, Compared]()
    for name, run in evaluated.runs.items():
        record = run.record("study")
        if record is not None:
            compared[name] = cast(StudyResult, record["result"])["comparison"]
    return compared


def seed_answers(compared: Compared) -> Iterator[Answer]:
    """Answer whether each arm's WER, over its seeds, is lower than the teacher's."""
    arms = next(iter(compared.values()))["teacher"]["presets"]
    for arm in arms:
        for place, by_other in compared.items():
            teacher = by_other["teacher"]
            over, difference = teacher["presets"][arm], teacher["differences"][arm]
            answer = _verdict(difference)
            yield Answer(
                f"Is the WER of {arm} over {count(len(over['wers']), 'seed')} lower than the teacher's, "
                f"{_PLACES[place]}?",
                answer,
                f"{percent(over['mean'])} %{_deviation(over)} against {percent(float(teacher['against']))} %, a "
                f"difference of {points_in_words(difference['value'], difference['ci95'])}{_p(difference)}.",
                _TONES[answer],
            )


def seed_section(name: str, compared: Compared, kinds: Kinds) -> ReportSection:
    """Return the arms over seeds, against each other and against the teacher, in the colours of ``kinds``."""
    rows = [
        (
            _PLACES[place],
            arm,
            _mean(over),
            ", ".join(percent(wer) for wer in over["wers"]),
            *(_points(by["differences"].get(arm)) for by in (arms, teacher)),
        )
        for place, by_other in compared.items()
        for arms, teacher in [(by_other["arm"], by_other["teacher"])]
        for arm, over in sorted(arms["presets"].items(), key=lambda item: item[1]["mean"])
    ]
    against = next(iter(compared.values()))["arm"]["against"]
    head = (
        "domain",
        "arm",
        "mean of seeds, % (standard deviation)",
        "each seed, %",
        f"against {against}, points (95 %)",
        "against the teacher, points (95 %)",
    )
    remark = (
        "Mean WER of the sets; the sampling unit is the seed. Intervals and p-values of the t-test assume normal "
        "differences. The sign-flip test does not; its p-value is at least 0.25 with three seeds, 0.0625 with five."
    )
    table = TableBlock("WER over seeds, best first", head, tuple(rows), n_labels=2)
    return ReportSection(f"Over seeds: {name}", (*_plot(name, compared, kinds), table, Text(remark, remark=True)))


def _plot(name: str, compared: Compared, kinds: Kinds) -> tuple[Figure, ...]:
    groups = {
        _PLACES[place]: {
            TEACHER: _interval([float(by_other["teacher"]["against"])] * 3),
            **{
                arm: _interval([over["mean"], *(over["ci95"] or [over["mean"]] * 2)])
                for arm, over in by_other["teacher"]["presets"].items()
            },
        }
        for place, by_other in compared.items()
    }
    shown = {kind: kind for kind in kinds.values() if kind in next(iter(groups.values()))}
    caption = "Mean WER of the sets over seeds, 95 % t-intervals; the teacher has no seeds. Further left is better."
    return draw_dots(f"over-seeds-{name}", caption, groups, shown, "WER, %")


def _interval(shares: list[float]) -> Interval:
    return Interval(*(100 * share for share in shares))


def _verdict(difference: SeedDifference) -> str:
    if difference["ci95"] is None:
        return "Cannot tell"
    low, high = difference["ci95"]
    return "Yes" if high < 0 else "No" if low > 0 else "Cannot tell"


def _deviation(over: SeedStatistics) -> str:
    return "" if over["std"] is None else f" (standard deviation {percent(over['std'])})"


def _mean(over: SeedStatistics) -> str:
    return percent(over["mean"]) + ("" if over["std"] is None else f" ({percent(over['std'])})")


def _points(difference: SeedDifference | None) -> str:
    return "" if difference is None else points(difference["value"], difference["ci95"])


def _p(difference: SeedDifference) -> str:
    t = "" if difference["p_t"] is None else f", t-test p = {difference['p_t']:.3f}"
    return f"{t}, sign-flip test p = {difference['p_sign_flip']:.3f}"
