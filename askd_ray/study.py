"""`askd study`: compares objectives with equal budgets over seeds, in domain and out of domain."""

from collections.abc import Mapping
from typing import Any

from askd_ray import stages
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.config.study import Study
from askd_ray.errors import AskdError
from askd_ray.evaluation.bundle_scores import evaluation_of_one, publish_scores
from askd_ray.evaluation.hypotheses import HYPOTHESES, NON_SPEECH, SCORES, TEACHER, read_hypotheses
from askd_ray.evaluation.ray_evaluate import compare, speed_of
from askd_ray.evaluation.report.write import report
from askd_ray.evaluation.scores import Scores
from askd_ray.evaluation.seeds import SeedComparison, compare_seeds
from askd_ray.evaluation.sets import print_left_out, read_sets
from askd_ray.evaluation.tables import speed_table
from askd_ray.files import write_json
from askd_ray.progress import Table, console
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run
from askd_ray.search.ray_study import train_runs
from askd_ray.torch_setup import device_of

DOMAINS = ("in_domain", "out_of_domain")


def run_study(recipe: Recipe, force: bool = False) -> dict[str, Any]:
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
    begun = run.begin("study")
    train_runs(list(runs.values()), study, force)
    disconnect()
    for one in runs.values():
        stages.export(one)
    models = {TEACHER: recipe.teacher.model, **{name: str(Run(one).bundle) for name, one in runs.items()}}
    sets, left_out = read_sets(run)
    print_left_out(left_out)
    folder, settings, device = run.path / "evaluate", recipe.evaluate, device_of(recipe.train.workers.gpu)
    scores = compare(models, TEACHER, sets, settings, folder, device=device)
    clips = [u for chosen in sets if chosen.name != NON_SPEECH for u in chosen.utterances]
    first = next(iter(runs))  # all students have the same shape
    speed = speed_of({first: models[first], TEACHER: models[TEACHER]}, clips, settings, device)
    evaluated = {**scores, "speed": speed, "left_out": left_out}
    write_json(folder / SCORES, evaluated)
    rows = read_hypotheses(folder / HYPOTHESES)
    for name, one in runs.items():
        publish_scores(Run(one).bundle, *evaluation_of_one(evaluated, rows, name, settings.normalizer))
    run.finish("evaluate", "", evaluated, begun)
    comparison = over_seeds(scores, study)
    result = {"seeds": list(study.seeds), "comparison": comparison, "speed": speed}
    console.print(*(study_table(domain, compared) for domain, compared in comparison.items()), speed_table(speed))
    run.finish("study", "", result, begun)
    console.print(f"report: {report([str(run.path)])}")
    return result


def _run_of(recipe: Recipe, arm: str, seed: int) -> Recipe:
    """Return the recipe of one run: the arm's objective and a seed, in a subfolder of the study."""
    assert recipe.study is not None
    run = Run(recipe)
    values: dict[str, Any] = recipe.model_dump(mode="json") | {
        "name": f"{arm}-{seed}",
        "seed": seed,
        "objective": recipe.study.arms[arm].model_dump(mode="json"),
        "runs_root": str(run.path / "runs"),
        "data_root": recipe.data_root or str(run.path.parent),
        "data_run": recipe.data_run or recipe.name,
        "study": None,
        "train": recipe.train.on_one_worker().model_dump(mode="json"),
    }
    return Recipe.model_validate(values)


def over_seeds(scores: Scores, study: Study) -> dict[str, dict[str, SeedComparison]]:
    """Return the arms over seeds, by domain: macro WERs against the arm ``study.against``, and against the teacher."""
    by_domain: dict[str, dict[str, SeedComparison]] = {}
    for domain in DOMAINS:
        domain_scores = scores[domain]
        if domain_scores is None:
            continue
        rates = domain_scores["macro"]["models"]
        wers = {arm: [rates[f"{arm}-{seed}"]["wer"] for seed in study.seeds] for arm in study.arms}
        against = {"arm": study.against, "teacher": rates[TEACHER]["wer"]}
        by_domain[domain] = {name: compare_seeds(wers, base) for name, base in against.items()}
    return by_domain


def study_table(domain: str, compared: Mapping[str, SeedComparison]) -> Table:
    """Return the arms as a table, best first: macro WER in % and the differences in points, with intervals."""
    arms, teachers = compared["arm"], compared["teacher"]
    title = f"{domain.replace('_', ' ')}: macro WER in %; the teacher has {100 * float(teachers['against']):.2f}"
    table = Table("arm", title=title, title_justify="left")
    for column in ("mean of seeds", "standard deviation", f"minus {arms['against']}", "minus teacher"):
        table.add_column(column, justify="right")
    presets = arms["presets"]
    for name in sorted(presets, key=lambda arm: presets[arm]["mean"]):
        one = presets[name]
        std = "-" if one["std"] is None else f"{100 * one['std']:.2f}"
        table.add_row(name, f"{100 * one['mean']:.2f}", std, *(_difference(c, name) for c in (arms, teachers)))
    return table


def _difference(compared: SeedComparison, name: str) -> str:
    if name not in compared["differences"]:
        return ""
    d = compared["differences"][name]
    interval = "" if d["ci95"] is None else f" ({100 * d['ci95'][0]:+.2f} to {100 * d['ci95'][1]:+.2f})"
    return f"{100 * d['value']:+.2f}{interval}" + ("" if d["p_t"] is None else f", p = {d['p_t']:.3f}")
