"""The stage `distill` with ``train.averaged_seeds``: trainings that differ in their seed, and the average of them."""

from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.progress import console
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.train.average import summary, write_average
from askd_ray.train.ray_trainer import clear_stale_run, distill, distill_key, trained


def distill_seeds(recipe: Recipe, force: bool = False) -> Result:
    """Train ``train.averaged_seeds`` students, one after the other, and write their average as the recipe's student.

    Each training is a run of its own in ``seeds/`` of the recipe's run: what has finished is not repeated, and a
    training that was killed continues. Returns what :func:`~askd_ray.train.average.average` returns, and raises
    :class:`~askd_ray.errors.AskdError` as :func:`~askd_ray.train.ray_trainer.distill` does.
    """
    recipe = with_absolute_paths(recipe)
    run = Run(recipe)
    runs = [_run_of_seed(run, recipe.seed + number) for number in range(recipe.train.averaged_seeds)]
    key = stage_key("average", [distill_key(one) for one in runs])
    done = trained(run, key)
    if done is None or force:
        clear_stale_run(run, key, force)

    def work() -> Result:
        for number, one in enumerate(runs, 1):
            console.print(f"distill: training {number} of {len(runs)}, seed {one.recipe.seed}")
            distill(one.recipe, force)
        return write_average(run, runs)

    return run_stage(StageWork(run, "distill", key, done, work, summary, ("distill/best",)), force)


def _run_of_seed(run: Run, seed: int) -> Run:
    train = run.recipe.train.model_copy(update={"averaged_seeds": 1})
    return Run(run.inside("seeds", name=f"seed-{seed}", seed=seed, train=train.model_dump(mode="json")))
