"""Train the runs of a study on a Ray cluster: one process per run, a few at a time."""

import json
from collections.abc import Sequence
from typing import Any

import ray
import torch

from askd_ray.config.schema import Recipe
from askd_ray.config.study import Study
from askd_ray.progress import bar
from askd_ray.ray_cluster import connect
from askd_ray.ray_errors import user_error
from askd_ray.results.texts import percent
from askd_ray.runs import Result, Run, run_stage
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.ray_trainer import check_inputs, clear_stale_run, distill_key, distill_stage, trained

_RETRIES = 2  # of a run whose process or machine died: it resumes from its last checkpoint


def train_runs(recipes: Sequence[Recipe], settings: Study, force: bool = False) -> None:
    """Distil the student of each recipe; skip finished runs, and resume killed ones.

    Raises :class:`AskdError` as `askd distill` does.
    """
    keys = {recipe.name: distill_key(Run(recipe)) for recipe in recipes}
    todo = [r for r in recipes if force or trained(Run(r), keys[r.name]) is None]
    for recipe in todo:
        check_inputs(recipe)
        clear_stale_run(Run(recipe), keys[recipe.name], force)
    if not todo:
        return
    use_gpu = recipes[0].train.workers.gpu
    connect(use_gpu=use_gpu)
    gpus = settings.gpus_per_run if use_gpu else 0.0
    # One process per run: a reused process would keep the memory of the previous run.
    train = ray.remote(num_cpus=settings.cpus_per_run, num_gpus=gpus, max_retries=_RETRIES, max_calls=1)(_train)
    waiting, running = list(todo), dict[Any, str]()
    with bar("study", len(todo), "run") as progress, user_error():
        while waiting or running:
            while waiting and len(running) < settings.concurrent:
                recipe = waiting.pop(0)
                run = train.remote(recipe.model_dump_json(), keys[recipe.name], settings.concurrent)
                running[run] = recipe.name
            progress.note(", ".join(running.values()))
            (done, *_), _ = ray.wait([*running])
            name = running.pop(done)
            progress.note(f"{name}: dev WER {percent(ray.get(done)['dev_wer'])} %")
            progress.advance()


def _train(recipe_json: str, key: str, concurrent: int) -> Result:
    recipe = Recipe.model_validate(json.loads(recipe_json))
    run = Run(recipe)

    def work() -> Result:
        context = PlainContext(torch.device(usable_device(recipe.train.workers.gpu)))
        loop = build_loop(recipe, context, run.distill, key)
        use_threads(processes=concurrent)
        return loop.run()

    return run_stage(distill_stage(run, key, work))
