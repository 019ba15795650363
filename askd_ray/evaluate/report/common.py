"""Several runs as one comparison: every student beside the others, on the same utterances, against one teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from askd_ray.errors import AskdError
from askd_ray.evaluate.hypotheses import CLEAN, NON_SPEECH, STUDENT, Hypothesis

SetCondition = tuple[str, str]  # set, condition


@dataclass(frozen=True)
class MergedRuns:
    """Rows of all runs; ``names`` are those that the models have in them, by run and the model's name there."""

    rows: list[Hypothesis]
    names: dict[tuple[str, str], str]
    left_out: tuple[str, ...]


def merge_runs(rows: Mapping[str, Sequence[Hypothesis]]) -> MergedRuns:
    """Put the rows of runs, by the run's name, together: those of the sets and conditions that all of them have.

    A run's student takes the run's name. Models that have one name everywhere, as the teacher, are one model if they
    said the same everywhere; else each is that of its run.

    Raises :class:`AskdError` when the runs have no set in common, or one is named like a model.
    """
    clips_by_run = {run: _clips_by_condition(run_rows) for run, run_rows in rows.items()}
    everywhere = {place for places in clips_by_run.values() for place in places}
    common = {place for place in everywhere if len({places.get(place) for places in clips_by_run.values()}) == 1}
    common -= {(name, how) for name, how in common if name != NON_SPEECH and (name, CLEAN) not in common}
    if not any(name != NON_SPEECH for name, _ in common):
        sets = (f"{run} has {', '.join(sorted({name for name, _ in places}))}" for run, places in clips_by_run.items())
        raise AskdError(f"report: the runs have no set in common with the same utterances: {'; '.join(sets)}")
    left_out = tuple(f"{name}, {condition}" for name, condition in sorted(everywhere - common))
    kept = {run: [row for row in run_rows if (row.set, row.condition) in common] for run, run_rows in rows.items()}
    names = _names(kept)
    taken = dict[str, list[Hypothesis]]()
    for (run, model), name in names.items():
        if name not in taken:
            taken[name] = [replace(row, model=name) for row in kept[run] if row.model == model]
    return MergedRuns([row for run_rows in taken.values() for row in run_rows], names, left_out)


def _clips_by_condition(rows: Sequence[Hypothesis]) -> dict[SetCondition, frozenset[tuple[object, ...]]]:
    found = dict[SetCondition, set[tuple[object, ...]]]()
    for row in rows:
        of_clip = (row.id, row.speaker, row.language, row.duration_s, row.reference, row.in_domain)
        found.setdefault((row.set, row.condition), set()).add(of_clip)
    return {place: frozenset(clips) for place, clips in found.items()}


def _names(rows: Mapping[str, Sequence[Hypothesis]]) -> dict[tuple[str, str], str]:
    hypotheses = dict[tuple[str, str], dict[tuple[str, str, str], str]]()
    for run, run_rows in rows.items():
        for row in run_rows:
            hypotheses.setdefault((run, row.model), {})[row.set, row.condition, row.id] = row.hypothesis
    names = dict[tuple[str, str], str]()
    for run, model in hypotheses:
        alike = all(said == hypotheses[run, model] for (_, other), said in hypotheses.items() if other == model)
        names[run, model] = run if model == STUDENT else model if alike else f"{model} of {run}"
    clash = set(rows) & {name for (_, model), name in names.items() if model != STUDENT}
    if clash:
        raise AskdError(f"report: the run {clash.pop()} is named like a model that is compared with")
    return names
