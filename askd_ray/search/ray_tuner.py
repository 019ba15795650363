"""The stage `tune`: Ray Tune searches the recipe's space with short trainings that are scored on dev.

All trials read the same shards and soft labels, and share decoded clips if these fit. A trial is one process that runs
the training loop, or several Ray Train workers. A killed search resumes.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from askd_ray.config.candidate import check_space, grid, read_values, with_values
from askd_ray.config.evaluate import Evaluate
from askd_ray.config.load import dump_recipe, with_absolute_paths, without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import Between, Domain, Space, is_integer
from askd_ray.data.sampler import Sampler
from askd_ray.data.shards import read_table, sealed, shard_paths
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, remove, write_json
from askd_ray.progress import console
from askd_ray.ray_errors import user_error
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.search.feature_budget import shared_features
from askd_ray.search.plot import draw
from askd_ray.search.ray_resources import connect_cluster, trial_resources
from askd_ray.search.ray_trial import (
    EVALUATIONS,
    SCORE,
    TRAIN_FOLDER,
    TRIALS_FOLDER,
    VALUES,
    run_trial,
    run_trial_on_workers,
)
from askd_ray.search.trials import TRIALS, LiveTable, ScoredTrial, TrialRow, check_place_of_search, table
from askd_ray.train.ray_trainer import check_inputs

_CANDIDATE = "candidate"
_STATES = {"PENDING": "waiting", "RUNNING": "running", "PAUSED": "paused", "TERMINATED": "done", "ERROR": "failed"}
_CHECKPOINTS_PER_TRIAL = 4  # for PBT: with two, one was deleted before another trial had read it


def search(recipe: Recipe, force: bool = False) -> Result:
    """Search the recipe's space; write the best recipe to ``runs/<name>/tune/best.yaml``, with pictures.

    Returns and records the trials, best first, and the path of the best recipe. A killed search resumes with the
    remaining trials. Raises :class:`AskdError` when a candidate is no valid recipe, when dev lacks a domain of
    ``tune.ood_domains`` or train has it too, when no trial reaches an evaluation, and for a run on a store.
    """
    recipe = with_absolute_paths(recipe)  # a trial has another working directory
    run = Run(recipe)
    check_place_of_search(run)
    settings = without_secrets(recipe).model_dump(exclude={"runs_root", "data_root", "evaluate", "study", "tracking"})
    key = stage_key(settings, run.key("label"))
    folder = run.path / "tune"
    done = run.finished("tune", key) if (folder / "best.yaml").is_file() else None
    if done is None or force:
        check_space(recipe)
        with sealed("test"):
            _check_domains(recipe, check_inputs(recipe))

    def summary(result: Result) -> str:
        return f"best score {result['trials'][0]['score']:.4f}, {folder / 'best.yaml'}"

    work = partial(_search, recipe, folder, key, force)
    return run_stage(StageWork(run, "tune", key, done, work, summary), force)


def _search(recipe: Recipe, folder: Path, key: str, force: bool) -> Result:
    with sealed("test"):
        _clear_stale_search(folder, key, force)
        connect_cluster(recipe)
        trials = _trials(recipe, folder, key)
    best = with_values(recipe, trials[0]["asked"])
    with atomic_path(folder / "best.yaml") as temporary:
        temporary.write_text(dump_recipe(best), encoding="utf-8")
    console.print(table(trials, "trials, best first"))
    draw(trials, recipe.tune.space, folder)
    console.print(f"best recipe: {folder / 'best.yaml'}  (askd distill --recipe {folder / 'best.yaml'})")
    for name in (
        TRIALS_FOLDER,
        TRAIN_FOLDER,
        "features",
    ):  # nothing needs the trials' students and decoded clips any more
        remove(folder / name)
    return {"trials": trials, "best": str(folder / "best.yaml")}


def _check_domains(recipe: Recipe, sampler: Sampler) -> None:
    """Check that dev has all ``tune.ood_domains`` and others, and that none of ``tune.ood_domains`` is trained on."""
    ood_domains = set(recipe.tune.ood_domains)
    if not ood_domains:
        return
    shards = shard_paths(Run(recipe).shards, "dev")
    dev_domains = {domain for path in shards for domain in read_table(path, ["domain"]).column("domain").to_pylist()}
    if missing := ood_domains - dev_domains:
        raise AskdError(
            f"tune.ood_domains: dev has no utterances of {', '.join(sorted(missing))}; "
            f"its domains are {', '.join(sorted(dev_domains))}"
        )
    if not dev_domains - ood_domains:
        raise AskdError("tune.ood_domains has all domains of dev: none would be in domain")
    weights = recipe.train.batching.domain_weights
    trained = {domain for domain in sampler.index.domains if weights.get(domain, 1.0) > 0.0}
    if trained_too := sorted(ood_domains & trained):
        raise AskdError(
            f"tune.ood_domains: {trained_too[0]} is in the training data too; exclude it with "
            f"train.batching.domain_weights={{{trained_too[0]}: 0}}"
        )


def _clear_stale_search(folder: Path, key: str, force: bool) -> None:
    """Remove the files of another search; keep those that this search can resume from."""
    key_file = folder / "key"
    if force or not key_file.is_file() or key_file.read_text(encoding="utf-8") != key:
        remove(folder)
    with atomic_path(key_file) as temporary:
        temporary.write_text(key, encoding="utf-8")


def _trials(recipe: Recipe, folder: Path, key: str) -> list[ScoredTrial]:
    """Run the remaining trials of a search; return all scored trials, the best first."""
    settings = recipe.tune
    length = {"epochs": settings.epochs, "evals_per_epoch": settings.evals_per_epoch}
    train = recipe.train.on_one_worker()  # with the micro-batches of all workers
    if settings.trial_workers > 1:
        workers = recipe.train.workers.model_copy(update={"count": settings.trial_workers, "min_count": None})
        train = train.model_copy(update={"workers": workers})
    short = recipe.model_copy(update={"train": train.model_copy(update=length), "evaluate": Evaluate()})
    features, run = shared_features(short, folder), run_trial if settings.trial_workers == 1 else run_trial_on_workers

    def trial(config: dict[str, Any]) -> None:
        run(short, _values(config), folder, key, features)

    trainable = tune.with_resources(trial, trial_resources(recipe))
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs every new study
    with user_error():
        if any((folder / "ray").glob("experiment_state-*.json")):
            console.print(f"tune: resuming the search in {folder}")
            tuner = tune.Tuner.restore(str(folder / "ray"), trainable, resume_errored=True)
        else:
            tuner = _tuner(recipe, folder, trainable)
        n_trials = len(grid(recipe)) if settings.searcher == "grid" else settings.trials
        with LiveTable(folder, n_trials):
            results = tuner.fit()
        if results.num_errors == n_trials:
            raise results.errors[0]
    if results.num_errors:
        console.print(f"tune: {results.num_errors} of {n_trials} trials failed: see {folder / 'ray'}")
    scored = [_scored(recipe, result) for result in results if result.metrics and SCORE in result.metrics]
    if not scored:
        raise AskdError(f"tune: none of {n_trials} trials reached a first evaluation: see {folder / 'ray'}")
    return sorted(scored, key=lambda row: row["score"])


def _tuner(recipe: Recipe, folder: Path, trainable: Any) -> tune.Tuner:
    settings = recipe.tune
    space = {path: _dimension(path, domain) for path, domain in settings.space.items()}
    if settings.searcher == "grid":
        space = {_CANDIDATE: tune.grid_search(grid(recipe))}
    is_pbt = settings.scheduler == "pbt"
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="min",
            num_samples=1 if settings.searcher == "grid" else settings.trials,
            max_concurrent_trials=settings.concurrent if settings.searcher == "tpe" else None,
            # Importing torch takes as long as a tenth of a short trial. Several workers end only with their trial.
            reuse_actors=settings.trial_workers == 1,
            search_alg=_searcher(recipe),
            scheduler=_scheduler(recipe),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            verbose=0,
            callbacks=[_TrialsWriter(recipe, folder / TRIALS)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=_CHECKPOINTS_PER_TRIAL if is_pbt else None),
        ),
    )


def _dimension(path: str, domain: Domain) -> Any:
    """Return a domain as a Ray Tune search space."""
    if not isinstance(domain, Between):
        return tune.choice(list(domain))
    if is_integer(path):
        return (tune.lograndint if domain.log else tune.randint)(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


def _searcher(recipe: Recipe) -> Searcher | SearchAlgorithm:
    if recipe.tune.searcher == "tpe":
        return OptunaSearch(seed=recipe.seed)
    max_concurrent = 0 if recipe.tune.scheduler == "pbt" else recipe.tune.concurrent  # 0: all
    return BasicVariantGenerator(max_concurrent=max_concurrent, random_state=recipe.seed)


def _scheduler(recipe: Recipe) -> TrialScheduler | None:
    if recipe.tune.scheduler == "asha":
        return ASHAScheduler(time_attr=EVALUATIONS, max_t=1000, grace_period=1, reduction_factor=2)
    if recipe.tune.scheduler == "none":
        return None
    space = recipe.tune.space
    return PopulationBasedTraining(
        time_attr=EVALUATIONS,
        perturbation_interval=1,
        hyperparam_mutations={
            path: _dimension(path, domain) if isinstance(domain, Between) else list(domain)
            for path, domain in space.items()
        },
        custom_explore_fn=partial(_clip_to_bounds, space),
        synch=True,  # otherwise a trial may copy one checkpoint again and again, and paused trials never run
    )


def _clip_to_bounds(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """Return values that PBT has perturbed, clipped to the bounds of their domains."""
    for path, domain in space.items():
        if isinstance(domain, Between):
            values[path] = min(max(values[path], domain.low), domain.high)
    return values


def _values(config: dict[str, Any]) -> dict[str, Any]:
    return config.get(_CANDIDATE, config)


def _scored(recipe: Recipe, result: Any) -> ScoredTrial:
    """Return a trial's row: its best scores, and its values at that evaluation."""
    rows = result.metrics_dataframe
    best = rows.loc[rows[SCORE].idxmin()]
    asked = json.loads(best[VALUES])
    wers = {name: float(best[name]) for name in (SCORE, "dev_wer", "dev_wer/in_domain", "dev_wer/ood") if name in rows}
    row = {
        "state": "failed" if result.error else "done",
        **wers,
        "evaluations": int(rows[EVALUATIONS].max()),
        "asked": asked,
        "values": read_values(recipe, asked),
    }
    return cast(ScoredTrial, row)


class _TrialsWriter(tune.Callback):
    """Writes the state of all trials to a file whenever it changes."""

    def __init__(self, recipe: Recipe, path: Path):
        self._recipe, self._path, self._rows = recipe, path, list[TrialRow]()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Write all trials."""
        rows = [self._row(trial) for trial in trials]
        if rows != self._rows:
            self._rows = rows
            write_json(self._path, rows)

    def _row(self, trial: Any) -> TrialRow:
        return {
            "state": _STATES[trial.status],
            "score": trial.metric_analysis.get(SCORE, {}).get("min"),
            "evaluations": (trial.last_result or {}).get(EVALUATIONS, 0),
            "values": read_values(self._recipe, _values(trial.config)),
        }
