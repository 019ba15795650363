"""The stages of the pipeline, each with what follows it: what a command, a job and a Python program call alike.

Imports stand in the functions: each stage loads only what it needs, and `askd --help` nothing.
"""

from typing import TYPE_CHECKING, TypeVar

from askd_ray.config.schema import Recipe
from askd_ray.runs import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from askd_ray.data.task_runner import TaskRunner
    from askd_ray.results.audio_use import AudioUseScores
    from askd_ray.results.evaluation import Evaluation

_T = TypeVar("_T")


def prepare(recipe: Recipe, force: bool = False) -> Result:
    """Read the sources into shards (:func:`askd_ray.data.prepare.prepare`), of large data and in a cluster with Ray."""
    from askd_ray.data import prepare as stage

    def cluster() -> "TaskRunner":
        from askd_ray.data.ray_prepare import RayRunner

        return RayRunner()

    return stage.prepare(recipe, force, cluster)


def label(recipe: Recipe, force: bool = False) -> Result:
    """Compute targets and the teacher's soft labels (:func:`askd_ray.targets.ray_label.label`)."""
    from askd_ray.targets import ray_label

    return ray_label.label(recipe, force)


def tune(recipe: Recipe, force: bool = False) -> Result:
    """Search the recipe's space on dev (:func:`askd_ray.search.ray_tuner.search`)."""
    from askd_ray.search import ray_tuner

    return ray_tuner.search(recipe, force)


def distill(recipe: Recipe, force: bool = False) -> Result:
    """Train the student (:func:`askd_ray.train.ray_trainer.distill`) and write the run's report.

    With ``train.averaged_seeds`` it is an average (:func:`askd_ray.train.ray_seeds.distill_seeds`).
    """
    from askd_ray.train import ray_seeds, ray_trainer

    train = ray_trainer.distill if recipe.train.averaged_seeds == 1 else ray_seeds.distill_seeds
    return _published(recipe, train(recipe, force))


def average(runs: "Sequence[str | Path]", name: str, force: bool = False) -> Result:
    """Average the students of runs as the run ``name`` (:func:`askd_ray.train.average.average`)."""
    from askd_ray.train import average as stage

    return stage.average(runs, name, force)


def export(recipe: Recipe, force: bool = False, formats: "Sequence[str]" = ()) -> Result:
    """Write the bundle (:func:`askd_ray.bundles.bundle.export`), with optional formats, and the run's report."""
    from askd_ray.bundles import bundle

    return _published(recipe, bundle.export(recipe, force, formats))


def evaluate(recipe: Recipe, force: bool = False) -> "Evaluation | AudioUseScores":
    """Compare student and teacher (:func:`askd_ray.evaluation.ray_evaluate.evaluate`) and write the run's report."""
    from askd_ray.evaluation import ray_evaluate

    return _published(recipe, ray_evaluate.evaluate(recipe, force))


def study(recipe: Recipe, force: bool = False) -> Result:
    """Compare objectives over seeds (:func:`askd_ray.study.run_study`)."""
    from askd_ray.study import run_study

    return run_study(recipe, force)


def _published(recipe: Recipe, result: _T) -> _T:
    from askd_ray.train.report import publish

    publish(recipe)
    return result
