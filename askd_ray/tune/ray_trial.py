"""One trial of a search: the plain loop in a process of Ray Tune's."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from askd_ray.config.candidate import FieldValues, read_values, with_values
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import Tune
from askd_ray.data.collate import BatchLoader
from askd_ray.data.plan import ReadTask
from askd_ray.data.schema import Batch
from askd_ray.data.shards import sealed
from askd_ray.files import remove
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.context import PlainContext
from askd_ray.train.loop import Loop
from askd_ray.train.track import read_metrics

SCORE, EVALUATIONS, VALUES = "score", "evaluations", "values"


def run_trial(recipe: Recipe, values: FieldValues, search: Path, key: str) -> None:
    """Train a candidate into ``search/trials/<its id>``; ``key`` is that of the search.

    A trial that was broken off goes on from its own checkpoint, and one that is given another's checkpoint goes on from
    that, with its own values: a checkpoint holds none, and its key is that of the search.
    """
    folder = search / "trials" / tune.get_context().get_trial_id()
    changes_on_the_way = recipe.tune.scheduler == "pbt"
    if changes_on_the_way:
        _take_over(folder)
    context = TuneContext(recipe, values, folder, search / "features" if recipe.tune.share_features else None)
    with sealed("test"):
        loop = Loop(with_values(recipe, values), context, folder, key)
        use_threads(processes=recipe.tune.concurrent)
        if not changes_on_the_way:
            _tell_again(loop)
        loop.run()


def score(metrics: dict[str, Any], settings: Tune) -> float:
    """Return what a search minimises: the dev WER, or that in and out of distribution, weighted."""
    if not settings.ood_domains:
        return metrics["dev_wer"]
    return (1.0 - settings.ood_weight) * metrics["dev_wer/in_domain"] + settings.ood_weight * metrics["dev_wer/ood"]


class TuneContext(PlainContext):
    """The surroundings of a trial: reports go to Ray Tune, which may end the trial there; decoded clips are shared."""

    def __init__(self, recipe: Recipe, values: FieldValues, folder: Path, features: Path | None):
        super().__init__(torch.device(usable_device(recipe.train.use_gpu)))
        self._settings, self._folder, self._features = recipe.tune, folder, features
        self._values = json.dumps({path: values[path] for path in read_values(recipe, values)})

    def batches(self, stream: BatchLoader, tasks: Iterable[ReadTask]) -> Iterator[Batch]:
        """Make the batches here, of clips that the first trial that needs them decodes for all."""
        return super().batches(replace(stream, features_folder=self._features), tasks)

    def report(self, metrics: dict[str, float]) -> None:
        """Report an evaluation, and where values change on the way what another trial may go on from."""
        told = [line for line in read_metrics(self._folder) if "dev_wer" in line and line["step"] <= metrics["step"]]
        found = {SCORE: score(metrics, self._settings), EVALUATIONS: len(told), VALUES: self._values}
        pbt = self._settings.scheduler == "pbt"
        tune.report({**metrics, **found}, checkpoint=tune.Checkpoint.from_directory(self._folder) if pbt else None)


def _take_over(folder: Path) -> None:
    """Put what Ray Tune says a trial goes on from into its folder."""
    remove(folder)
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as theirs:
            shutil.copytree(theirs, folder)


def _tell_again(loop: Loop) -> None:
    """Report the last evaluation of a trial that was broken off: Ray Tune may not have heard of it."""
    position = loop.position
    told = [line for line in read_metrics(loop.folder) if "dev_wer" in line and line["step"] <= position.step]
    is_of_these_layers = position.shrunk == len(loop.recipe.student.shrink) and position.best_step is not None
    if told and is_of_these_layers:
        loop.context.report(told[-1])
