"""`askd study`: compares objectives with equal budgets over seeds, in domain and out of domain."""

from collections.abc import Mapping

from askd_ray import stages
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.config.study import Study
from askd_ray.errors import AskdError
from askd_ray.evaluation.bundle_scores import evaluation_of_one, publish_scores
from askd_ray.evaluation.hypotheses import TEACHER
from askd_ray.evaluation.ray_evaluate import evaluate_models
from askd_ray.evaluation.report.write import report
from askd_ray.evaluation.seeds import DomainComparison, SeedComparison, StudyResult, compare_seeds
from askd_ray.evaluation.tables import speed_table
from askd_ray.progress import Table, console
from askd_ray.ray_cluster import disconnect
from askd_ray.results.texts import percent, points
from askd_ray.results.wer import Scores
from askd_ray.runs import BUNDLE, Result, Run, StageWork, run_stage
from askd_ray.search.ray_study import train_runs

DOMAINS = ("in_domain", "out_of_domain")


def run_study(recipe: Recipe, force: bool = False) -> Result:
    """Train every arm with every seed, score all students and the teacher, and return the result.

    Writes study.json and ``evaluate/`` into the study's run folder. The runs are in its folder ``runs``, and each
    bundle gets its scores. After an interruption, the same command continues the study.

    Raises :class:`AskdError` when the recipe has no ``study``, and the errors of the stages.
    """
    recipe = with_absolute_paths(recipe)
    if recipe.study is None:
        raise AskdError(f"recipe {recipe.name}: the section study is missing: docs/study.md describes it")
    study, run = recipe.study, Run(recipe)
    runs = {f"{arm}-{seed}": _run_of(recipe, arm, seed) for arm in study.arms for seed in study.seeds}
    stages.prepare(recipe)
    by_temperature = {r.objective.temperature.start: r for r in runs.values()}
    for one in by_temperature.values():  # soft labels depend only on the temperature
        stages.label(one)
    # Never skipped as a whole: its trainings, exports and evaluation are skipped where they are finished.
    result = run_stage(StageWork(run, "study", "", None, lambda: _study(run, runs, study, force)))
    console.print(f"report: {report([run.place.uri])}")
    return result


def _study(run: Run, runs: Mapping[str, Recipe], study: Study, force: bool) -> Result:
    train_runs(list(runs.values()), study, force)
    disconnect()
    for one in runs.values():
        stages.export(one)
        Run(one).fetch(BUNDLE)
    models = {TEACHER: run.recipe.teacher.model, **{name: str(Run(one).bundle) for name, one in runs.items()}}
    # All students have the same shape: the speed of the first one is that of all.
    evaluated, rows = evaluate_models(run, models, next(iter(runs)), force)
    for name, one in runs.items():
        publish_scores(Run(one).bundle, *evaluation_of_one(evaluated, rows, name))
        Run(one).resend("export", BUNDLE)
    comparison, speed = over_seeds(evaluated, study), evaluated["speed"]
    console.print(*(study_table(domain, compared) for domain, compared in comparison.items()), speed_table(speed))
    return dict(StudyResult(seeds=list(study.seeds), comparison=comparison, speed=speed))


def _run_of(recipe: Recipe, arm: str, seed: int) -> Recipe:
    """Return the recipe of one run: the arm's objective and a seed, in a subfolder of the study."""
    assert recipe.study is not None
    return Run(recipe).inside(
        "runs",
        name=f"{arm}-{seed}",
        seed=seed,
        objective=recipe.study.arms[arm].model_dump(mode="json"),
        study=None,
        train=recipe.train.on_one_worker().model_dump(mode="json"),
    )


def over_seeds(scores: Scores, study: Study) -> dict[str, DomainComparison]:
    """Return the arms over seeds, by domain: macro WERs against the arm ``study.against``, and against the teacher."""
    by_domain: dict[str, DomainComparison] = {}
    for domain in DOMAINS:
        domain_scores = scores[domain]
        if domain_scores is None:
            continue
        rates = domain_scores["macro"]["models"]
        wers = {arm: [rates[f"{arm}-{seed}"]["wer"] for seed in study.seeds] for arm in study.arms}
        teacher_wer = rates[TEACHER]["wer"]
        by_domain[domain] = {"arm": compare_seeds(wers, study.against), "teacher": compare_seeds(wers, teacher_wer)}
    return by_domain


def study_table(domain: str, compared: DomainComparison) -> Table:
    """Return the arms as a table, best first: macro WER in % and the differences in points, with intervals."""
    arms, teachers = compared["arm"], compared["teacher"]
    title = f"{domain.replace('_', ' ')}: macro WER in %; the teacher has {percent(float(teachers['against']))}"
    table = Table("arm", title=title, title_justify="left")
    for column in ("mean of seeds", "standard deviation", f"minus {arms['against']}", "minus teacher"):
        table.add_column(column, justify="right")
    presets = arms["presets"]
    for name in sorted(presets, key=lambda arm: presets[arm]["mean"]):
        one = presets[name]
        cells = percent(one["mean"]), percent(one["std"])
        table.add_row(name, *cells, *(_difference(c, name) for c in (arms, teachers)))
    return table


def _difference(compared: SeedComparison, name: str) -> str:
    if name not in compared["differences"]:
        return ""
    d = compared["differences"][name]
    return points(d["value"], d["ci95"]) + ("" if d["p_t"] is None else f", p = {d['p_t']:.3f}")
