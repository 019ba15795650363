"""The stage `tune`: Ray Tune searches with Optuna's TPE and stops bad trials early with ASHA.

All trials read the same shards and the same soft labels; a trial is one process that runs the plain loop. Trials are
scored on dev only.
"""

from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.table import Table

from askd_ray.config.load import dump_recipe, with_absolute_paths, without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, remove
from askd_ray.progress import Bar, bar, console
from askd_ray.ray_cluster import connect
from askd_ray.ray_errors import user_error
from askd_ray.runs import Run, stage_key
from askd_ray.train.context import PlainContext
from askd_ray.train.loop import Loop
from askd_ray.train.ray_trainer import check_inputs
from askd_ray.tune.space import Choice, search_space, with_trial

_CPUS_PER_TRIAL = 1.0
_METRIC = "dev_wer"


class TuneContext(PlainContext):
    """The surroundings of a trial: reports go to Ray Tune, which may end the trial there."""

    def report(self, metrics: dict[str, float]) -> None:
        """Report an evaluation."""
        tune.report(metrics)


def search(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Search the recipe's space; the best recipe goes to ``runs/<name>/tune/best.yaml``.

    Returns and records the trials, best first, the best values and where the recipe lies.
    """
    recipe = with_absolute_paths(recipe)  # a trial runs in a folder of its own
    run = Run(recipe)
    settings = without_secrets(recipe).model_dump(exclude={"runs_root", "data_root", "evaluate", "tracking"})
    key = stage_key(settings, run.key("label"))
    folder = run.path / "tune"
    done = run.finished("tune", key)
    if done is not None and (folder / "best.yaml").is_file() and not force:
        console.print(
            f"tune: finished already (best dev WER {done['trials'][0]['dev_wer']:.4f}, {folder / 'best.yaml'})"
        )
        return done
    check_inputs(recipe)
    remove(folder)
    begun = run.begin()
    connect()
    trials = _trials(recipe, folder)
    remove(folder / "trials")  # the students of trials: only their scores are wanted
    if not trials:
        raise AskdError(f"tune: none of {recipe.tune.trials} trials reached a first evaluation: see {folder}")
    best = with_trial(recipe, trials[0])
    with atomic_path(folder / "best.yaml") as temporary:
        temporary.write_text(dump_recipe(best), encoding="utf-8")
    console.print(_table(trials))
    console.print(f"best recipe: {folder / 'best.yaml'}  (askd distill --recipe {folder / 'best.yaml'})")
    return run.finish("tune", key, {"trials": trials, "best": str(folder / "best.yaml")}, begun)


def _trials(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    settings = recipe.tune
    of_trials = {"epochs": settings.epochs, "evals_per_epoch": settings.evals_per_epoch}
    of_trials |= {"workers": 1, "least_workers": None, "micro_batches": recipe.train.n_lanes}
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update=of_trials)})
    space = {
        name: tune.choice(list(d.values)) if isinstance(d, Choice) else tune.uniform(d.low, d.high)
        for name, d in search_space(recipe).items()
    }

    def trial(values: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        Loop(with_trial(short, values), TuneContext(), folder / "trials" / name, "trial").run()

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    with bar("tune", settings.trials, "trial") as progress, user_error():
        results = tune.Tuner(
            tune.with_resources(trial, {"CPU": _CPUS_PER_TRIAL, "GPU": 1 if recipe.train.use_gpu else 0}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=_METRIC,
                mode="min",
                num_samples=settings.trials,
                max_concurrent_trials=settings.concurrent,
                reuse_actors=True,  # importing torch takes as long as a tenth of a short trial
                search_alg=OptunaSearch(seed=recipe.seed),
                scheduler=ASHAScheduler(time_attr="training_iteration", max_t=1000, grace_period=1, reduction_factor=2),
            ),
            run_config=tune.RunConfig(name="ray", storage_path=str(folder), verbose=0, callbacks=[_Progress(progress)]),
        ).fit()
    found: list[dict[str, Any]] = []
    for result in results:
        if result.metrics and _METRIC in result.metrics:
            scores = result.metrics_dataframe
            wer = min(scores[_METRIC]) if scores is not None else result.metrics[_METRIC]
            found.append(
                {**(result.config or {}), "dev_wer": float(wer), "evaluations": result.metrics["training_iteration"]}
            )
    return sorted(found, key=lambda t: t["dev_wer"])


class _Progress(tune.Callback):
    """Moves the bar when a trial ends, and shows the best score so far."""

    def __init__(self, progress: Bar):
        self._bar, self._best = progress, float("inf")

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune saves its settings, callbacks included, to resume from; a bar on the screen is not among them.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note the best score."""
        self._best = min(self._best, result[_METRIC])
        self._bar.note(f"best dev WER {self._best:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count the trial."""
        self._bar.advance()


def _table(trials: list[dict[str, Any]]) -> Table:
    table = Table(title="trials, best first")
    for name in ("dev WER", "schedule", "teacher weight", "self weight", "evaluations"):
        table.add_column(name, justify="right")
    for t in trials:
        weights = f"{t['start']:.2f} to {min(t['end'], t['start']):.2f}"
        table.add_row(f"{t['dev_wer']:.4f}", t["schedule"], weights, f"{t['self_weight']:.2f}", str(t["evaluations"]))
    return table
