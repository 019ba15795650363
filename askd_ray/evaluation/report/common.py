"""Merges several runs into one comparison: all students on the same utterances, against one teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import CLEAN, NON_SPEECH, STUDENT, Hypothesis

SetCondition = tuple[str, str]  # set, condition


@dataclass(frozen=True)
class MergedRuns:
    """Rows of all runs. ``names`` maps a run and a model's name in that run to its name in ``rows``."""

    rows: list[Hypothesis]
    names: dict[tuple[str, str], str]
    left_out: tuple[str, ...]


def merge_runs(rows: Mapping[str, Sequence[Hypothesis]]) -> MergedRuns:
    """Merge the rows of runs, by run name; keep the sets and conditions that all runs have.

    The student of a run gets the run's name. Models with the same name in all runs, such as the teacher, become one
    model if their hypotheses are equal in all runs; otherwise each name gets its run as a suffix.

    Raises :class:`AskdError` when the runs have no set in common, or a run has the name of a model.
    """
    clips_by_run = {run: _clips_by_condition(run_rows) for run, run_rows in rows.items()}
    in_any = {key for clips in clips_by_run.values() for key in clips}
    common = {key for key in in_any if len({clips.get(key) for clips in clips_by_run.values()}) == 1}
    common -= {(name, condition) for name, condition in common if name != NON_SPEECH and (name, CLEAN) not in common}
    if not any(name != NON_SPEECH for name, _ in common):
        sets = (f"{run} has {', '.join(sorted({name for name, _ in clips}))}" for run, clips in clips_by_run.items())
        raise AskdError(f"report: the runs have no set in common with the same utterances: {'; '.join(sets)}")
    left_out = tuple(f"{name}, {condition}" for name, condition in sorted(in_any - common))
    kept = {run: [row for row in run_rows if (row.set, row.condition) in common] for run, run_rows in rows.items()}
    names = _names(kept)
    merged = dict[str, list[Hypothesis]]()
    for (run, model), name in names.items():
        if name not in merged:
            merged[name] = [replace(row, model=name) for row in kept[run] if row.model == model]
    return MergedRuns([row for model_rows in merged.values() for row in model_rows], names, left_out)


def _clips_by_condition(rows: Sequence[Hypothesis]) -> dict[SetCondition, frozenset[tuple[object, ...]]]:
    clips_of = dict[SetCondition, set[tuple[object, ...]]]()
    for row in rows:
        clip = (row.id, row.speaker, row.language, row.duration_s, row.reference, row.in_domain)
        clips_of.setdefault((row.set, row.condition), set()).add(clip)
    return {key: frozenset(clips) for key, clips in clips_of.items()}


def _names(rows: Mapping[str, Sequence[Hypothesis]]) -> dict[tuple[str, str], str]:
    hypotheses = dict[tuple[str, str], dict[tuple[str, str, str, str], str]]()
    for run, run_rows in rows.items():
        for row in run_rows:
            hypotheses.setdefault((run, row.model), {})[row.path, row.set, row.condition, row.id] = row.hypothesis
    names = dict[tuple[str, str], str]()
    for run, model in hypotheses:
        equal = all(texts == hypotheses[run, model] for (_, other), texts in hypotheses.items() if other == model)
        names[run, model] = run if model == STUDENT else model if equal else f"{model} of {run}"
    clash = set(rows) & {name for (_, model), name in names.items() if model != STUDENT}
    if clash:
        raise AskdError(f"report: the run {clash.pop()} has the same name as a model in the comparison")
    return names
