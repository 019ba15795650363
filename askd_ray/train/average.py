"""`askd average`: the mean of the weights of trained students, moved towards their initial weights as far as dev asks.

Averages of fine-tuned models of one origin are often better than each of them, in and out of domain, and cost nothing
at inference (model soups, arXiv 2203.05482); so is the interpolation with the model before fine-tuning (WiSE-FT, arXiv
2109.01903). For a student that keeps all layers, the initial weights are those of the teacher.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.load import make_recipe, parse_values
from askd_ray.config.schema import Recipe
from askd_ray.config.start import RECIPE_FILE
from askd_ray.data.dev import DevClips, read_dev
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.progress import Table, bar, console
from askd_ray.results.texts import percent
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.targets.soft_labels import label_key
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import student_kind
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import dev_errors, dev_metrics, dev_score

FACTORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The shares of the initial weights that dev chooses from; 0 is the mean of the students."""

Tensors = Mapping[str, torch.Tensor]


def average(folders: Sequence[str | Path], name: str, force: bool = False) -> Result:
    """Write the average of the students of trained runs as the student of the run ``name``, beside the first run.

    dev chooses the share of the initial weights in it (:data:`FACTORS`) by the score that also chooses checkpoints.
    Returns ``students`` (names of the runs), ``factor``, ``factors`` (the scores of each), and the chosen one's scores.

    Raises :class:`AskdError` when a folder is no trained run, when the students differ in shape or teacher, and when
    ``name`` is one of the runs.
    """
    runs = [_trained_run(folder) for folder in folders]
    recipe = runs[0].recipe
    for other in runs[1:]:
        _check_same(recipe, other)
    shared = {"name": name, "data_run": recipe.data_run or recipe.name, "data_root": runs[0].data_path.parent.uri}
    run = Run(Recipe.model_validate({**recipe.model_dump(mode="json"), **shared}))
    if run.place in {other.place for other in runs}:
        raise AskdError(f"askd average: {name} is one of the averaged runs: give the average another name")
    key = stage_key("average", [other.key("distill") for other in runs])
    done = run.finished("distill", key) if run.has("distill/best") else None
    work = StageWork(run, "distill", key, done, lambda: write_average(run, runs), summary, ("distill/best",))
    return run_stage(work, force)


def summary(result: Result) -> str:
    """Return the result of an average in a few words."""
    return f"the average of {', '.join(result['students'])} and {result['factor']:g} of the initial weights"


def _trained_run(folder: str | Path) -> Run:
    """Return the run in a folder, here or on a store, with the recipe of its training."""
    place = Location.of(folder)
    file = place / RECIPE_FILE
    if not file.is_file():
        raise AskdError(f"{place} is no run: it has no {RECIPE_FILE}")
    recipe = make_recipe(parse_values(file.read_bytes().decode(), str(file)), (), str(file))
    run = Run(recipe.model_copy(update={"runs_root": place.parent.uri}))
    run.result("distill")
    if not run.has("distill/best"):
        raise AskdError(f"no student in {run.place / 'distill/best'}: run `askd distill` first")
    return Run(run.used("distill").model_copy(update={"runs_root": run.recipe.runs_root}))


def _check_same(recipe: Recipe, other: Run) -> None:
    for field in ("student", "teacher", "window", "targets"):
        if getattr(other.recipe, field) != getattr(recipe, field):
            raise AskdError(
                f"askd average: {other.recipe.name} and {recipe.name} differ in {field}: only students of one origin "
                "and shape can be averaged"
            )


def write_average(run: Run, runs: Sequence[Run]) -> Result:
    """Write the average of the students of ``runs`` as that of ``run``, and return the result of :func:`average`."""
    recipe = run.recipe
    use_threads()
    kind, n_shrunk = student_kind(recipe), len(recipe.student.shrink)
    for other in runs:
        other.fetch("distill/best")
    student = kind.load(runs[0].student, n_shrunk)
    initial = kind.build(n_shrunk).state_dict()
    mean = mean_weights([kind.load(other.student, n_shrunk).state_dict() for other in runs])
    context = PlainContext(torch.device(usable_device(recipe.train.workers.gpu)))
    dev, by_factor = read_dev(run.shards, run.labels, label_key(recipe)), dict[float, dict[str, float]]()
    with bar("Scoring averages on dev", len(FACTORS), "averages") as progress:
        for factor in FACTORS:
            student.load_state_dict(interpolated(mean, initial, factor))
            by_factor[factor] = _scores(student.to(context.device), kind, dev, recipe, context)
            progress.advance()
    factor = min(by_factor, key=lambda f: by_factor[f]["dev_score"])
    student.load_state_dict(interpolated(mean, initial, factor))
    kind.save(student, run.student)
    console.print(_table(by_factor))
    return {
        "students": [other.recipe.name for other in runs],
        "factor": factor,
        "factors": [{"factor": f, **scores} for f, scores in by_factor.items()],
        **by_factor[factor],
        "params_m": round(student.n_params / 1e6, 2),
    }


def mean_weights(students: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Return the mean of each tensor over students."""
    return {name: torch.stack([s[name].float() for s in students]).mean(dim=0) for name in students[0]}


def interpolated(mean: Tensors, initial: Tensors, factor: float) -> dict[str, torch.Tensor]:
    """Return ``(1 - factor) mean + factor initial`` of each tensor."""
    return {name: torch.lerp(value, initial[name].float(), factor) for name, value in mean.items()}


def _scores(
    student: StudentModel, kind: StudentKind, dev: DevClips, recipe: Recipe, context: PlainContext
) -> dict[str, float]:
    errors = dev_errors(student, kind, dev, DecodingWindow.of(recipe.window), context)
    scores = dev_metrics(errors, dev.silent_min, ())
    return {**scores, "dev_score": dev_score(scores, recipe.train.selection)}


def _table(by_factor: Mapping[float, Mapping[str, float]]) -> Table:
    names = list(next(iter(by_factor.values())))
    shown = Table("initial weights", title="Averages on dev: WER in %", title_justify="left")
    for name in names:
        shown.add_column(name.removeprefix("dev_").replace("wer/", "WER, "), justify="right")
    for factor, scores in by_factor.items():
        cells: list[str] = [percent(scores[n]) if n.startswith("dev_wer") else f"{scores[n]:.3f}" for n in names]
        shown.add_row(f"{factor:g}", *cells)
    return shown


def result_text(result: Mapping[str, Any]) -> str:
    """Return the result of an average in one sentence, for the run's report."""
    return (
        f"**Dev WER {percent(result['dev_wer'])} %**, the average of {', '.join(result['students'])} with "
        f"{result['factor']:g} of the initial weights, chosen on dev; {result['params_m']:g} M parameters."
    )
