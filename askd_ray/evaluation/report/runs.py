"""Reads the evaluations for a report: of one run, or of several runs on the sets that all of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError, without_credentials
from askd_ray.evaluation.hypotheses import (
    CLEAN,
    HYPOTHESES,
    NON_SPEECH,
    SCORES,
    SERVED,
    STUDENT,
    Hypothesis,
    read_hypotheses,
)
from askd_ray.evaluation.report.common import merge_runs
from askd_ray.evaluation.scores import score
from askd_ray.evaluation.tally import SetResults, tally
from askd_ray.files import local_path, scheme_of
from askd_ray.location import Location
from askd_ray.results.evaluation import Evaluation, read_evaluation
from askd_ray.results.wer import Scores
from askd_ray.runs import Run


@dataclass(frozen=True)
class Evaluated:
    """The input of a report.

    ``runs`` and ``stored`` (their scores.json) have the runs' names as keys. ``students`` maps each student to its run,
    and ``kinds`` maps each model to its kind: the arm of a study, or the model itself. ``clean`` holds the served
    results on the clean sets of speech, and ``left_out`` the sets and conditions that not all runs have.
    """

    runs: Mapping[str, Run]
    stored: Mapping[str, Evaluation]
    scores: Scores
    students: Mapping[str, str]
    kinds: Mapping[str, str]
    clean: tuple[SetResults, ...]
    left_out: tuple[str, ...] = ()


def find_run(name_or_folder: str) -> Run:
    """Return an evaluated run, by its folder or URI or by its name under ``runs``, with the recipe of the evaluation.

    Raises :class:`AskdError` when there is no such run, or when it has not been evaluated.
    """
    folder = _folder_of(name_or_folder)
    current = {"name": folder.name, "runs_root": folder.parent.uri}  # the run may have been moved
    run = Run(Recipe().model_copy(update=current))
    record = run.record("evaluate")
    if record is None or not all(run.has(f"evaluate/{name}") for name in (SCORES, HYPOTHESES)):
        raise AskdError(f"run {folder}: stage 'evaluate' has not finished: run `askd evaluate` first")
    try:
        return Run(Recipe.model_validate(record["recipe"]).model_copy(update=current))
    except ValidationError:
        raise AskdError(
            f"run {folder} was evaluated by another version of askd-ray with other settings: run `askd evaluate` again"
        ) from None


def _folder_of(name_or_folder: str) -> Location:
    if scheme_of(name_or_folder) is None:
        places = [Location.of(place.resolve()) for place in (local_path(name_or_folder), Path("runs") / name_or_folder)]
        neither = f"neither {name_or_folder} nor {Path('runs') / name_or_folder} is a folder with a recipe.yaml"
    else:
        places, neither = [Location.of(name_or_folder)], "it has no recipe.yaml"
    folder = next((place for place in places if (place / "recipe.yaml").is_file()), None)
    if folder is None:
        raise AskdError(f"no run {without_credentials(name_or_folder)!r}: {neither}")
    return folder


def read_evaluations(runs: Sequence[Run]) -> Evaluated:
    """Read the evaluation of each run. Several runs are scored again together, on the utterances that all of them have.

    Raises :class:`AskdError` for runs with the same name, runs with nothing in common, and unreadable files.
    """
    named = {run.recipe.name: run for run in runs}
    if len(named) < len(runs):
        raise AskdError(f"report of {', '.join(r.recipe.name for r in runs)}: the runs must have different names")
    for run in runs:
        run.fetch("evaluate")
    stored = {name: read_evaluation(run.path / "evaluate" / SCORES) for name, run in named.items()}
    rows = {name: read_hypotheses(run.path / "evaluate" / HYPOTHESES) for name, run in named.items()}
    first, (run_rows, *others) = next(iter(named)), rows.values()
    scores = stored[first]
    if not others:
        models = [model for model in scores["models"] if model != scores["baseline"]]
        students = dict.fromkeys([STUDENT] if STUDENT in models else models, first)
        return Evaluated(named, stored, scores, students, _kinds(scores, named[first]), _clean(run_rows, scores))
    merged = merge_runs(rows)
    baseline = merged.names[first, scores["baseline"]]
    scores = score(merged.rows, baseline, scores["normalizer"])
    students = {merged.names[run, STUDENT]: run for run in named if (run, STUDENT) in merged.names}
    kinds = {model: model for model in scores["models"]}
    return Evaluated(named, stored, scores, students, kinds, _clean(merged.rows, scores), merged.left_out)


def _kinds(scores: Scores, run: Run) -> dict[str, str]:
    study = run.recipe.study
    arms = {f"{arm}-{seed}": arm for arm in study.arms for seed in study.seeds} if study else {}
    return {model: arms.get(model, model) for model in scores["models"]}


def _clean(rows: Sequence[Hypothesis], scores: Scores) -> tuple[SetResults, ...]:
    speech = [row for row in rows if row.path == SERVED and row.condition == CLEAN and row.set != NON_SPEECH]
    return tuple(tally(speech, scores["baseline"], scores["normalizer"]))
