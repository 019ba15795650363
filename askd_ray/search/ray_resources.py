"""The resources of a search: its cluster, and what Ray reserves for each trial."""

import os

import ray

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.ray_cluster import connect


def connect_cluster(recipe: Recipe) -> None:
    """Start or join the cluster of a search.

    Raises :class:`AskdError` when a trial does not fit on this machine. A cluster that is joined may grow.
    """
    # The interval at which Tune saves its state, 10 s by default: a resumed search repeats all unsaved work.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    connect(use_gpu=recipe.train.workers.gpu)
    if "RAY_ADDRESS" in os.environ:
        return
    available, settings = ray.cluster_resources(), recipe.tune
    if settings.cpus_per_trial > available.get("CPU", 0.0):
        available_cpus = available.get("CPU", 0.0)
        raise AskdError(
            f"tune.cpus_per_trial = {settings.cpus_per_trial:g}: this machine's cluster has {available_cpus:g}"
        )
    if recipe.train.workers.gpu and settings.trial_workers > available.get("GPU", 0.0):
        raise AskdError(
            f"tune.trial_workers = {settings.trial_workers}, with a GPU each: this machine's cluster has "
            f"{available.get('GPU', 0.0):g}"
        )


def trial_resources(recipe: Recipe) -> dict[str, float]:
    """Return the Ray resources of a trial's process.

    The process of a trial of several workers waits for them. It reserves one byte of memory and no CPU: if it held a
    CPU, several trials could hold all those that their workers wait for. (Ray refuses a trial without resources.) Ray
    places the workers of a trial all at the same time, so no two trials can each hold half of what they need.

    All PBT trials are alive at the same time and take turns if the resources do not suffice. On a local cluster, the
    CPUs per trial are chosen so that ``tune.concurrent`` trials run at once.
    """
    settings = recipe.tune
    if settings.trial_workers > 1:
        return {"memory": 1}
    cpus = settings.cpus_per_trial
    if settings.scheduler == "pbt" and "RAY_ADDRESS" not in os.environ:
        cpus = max(cpus, ray.cluster_resources()["CPU"] / settings.concurrent)
    return {"CPU": cpus, "GPU": settings.gpus_per_trial if recipe.train.workers.gpu else 0}


def worker_resources(recipe: Recipe) -> dict[str, float]:
    """Return the Ray resources of each of several workers of a trial."""
    settings = recipe.tune
    return {"CPU": settings.cpus_per_trial / settings.trial_workers} | ({"GPU": 1} if recipe.train.workers.gpu else {})
