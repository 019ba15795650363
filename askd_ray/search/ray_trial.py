"""One trial of a search: the training loop in a Ray Tune process."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from askd_ray.config.candidate import FieldValues, read_values, with_values
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import Tune
from askd_ray.data.collate import BatchLoader
from askd_ray.data.sampler import DataCursor, Sampler
from askd_ray.data.schema import Batch
from askd_ray.data.shards import sealed
from askd_ray.files import remove
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.loop import Loop
from askd_ray.train.track import read_metrics

SCORE, EVALUATIONS, VALUES = "score", "evaluations", "values"


def run_trial(recipe: Recipe, values: FieldValues, search: Path, key: str) -> None:
    """Train a candidate into ``search/trials/<trial id>``; ``key`` is the key of the search.

    An interrupted trial resumes from its checkpoint. With PBT, a trial may resume from another trial's checkpoint with
    its own values: checkpoints do not store the searched values, and all trials have the key of the search.
    """
    folder = search / "trials" / tune.get_context().get_trial_id()
    is_pbt = recipe.tune.scheduler == "pbt"
    if is_pbt:
        _restore_checkpoint(folder)
    context = TuneContext(recipe, values, folder, search / "features" if recipe.tune.share_features else None)
    with sealed("test"):
        loop = build_loop(with_values(recipe, values), context, folder, key)
        use_threads(processes=recipe.tune.concurrent)
        if not is_pbt:
            _report_last_evaluation(loop)
        loop.run()


def score(metrics: dict[str, Any], settings: Tune) -> float:
    """Return the score that a search minimises: the dev score that also chooses the best student.

    With ``ood_domains``, a weighted sum of the WERs in domain and out of domain replaces the WER in it.
    """
    if not settings.ood_domains:
        return metrics["dev_score"]
    wer = (1.0 - settings.ood_weight) * metrics["dev_wer/in_domain"] + settings.ood_weight * metrics["dev_wer/ood"]
    return metrics["dev_score"] - metrics["dev_wer"] + wer


class TuneContext(PlainContext):
    """The context of a trial: it reports to Ray Tune, which may then stop the trial, and shares decoded clips."""

    def __init__(self, recipe: Recipe, values: FieldValues, folder: Path, features: Path | None):
        super().__init__(torch.device(usable_device(recipe.train.workers.gpu)))
        self._settings, self._folder, self._features = recipe.tune, folder, features
        self._values = json.dumps({path: values[path] for path in read_values(recipe, values)})

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Build the batches in this process; the first trial that needs a clip decodes it for all trials."""
        return super().batches(replace(loader, features_folder=self._features), sampler, cursor)

    def report(self, metrics: dict[str, float]) -> None:
        """Report an evaluation; with PBT also the checkpoint, from which another trial may resume."""
        evaluations = [
            line for line in read_metrics(self._folder) if "dev_wer" in line and line["step"] <= metrics["step"]
        ]
        results = {SCORE: score(metrics, self._settings), EVALUATIONS: len(evaluations), VALUES: self._values}
        is_pbt = self._settings.scheduler == "pbt"
        tune.report({**metrics, **results}, checkpoint=tune.Checkpoint.from_directory(self._folder) if is_pbt else None)


def _restore_checkpoint(folder: Path) -> None:
    """Replace a trial's folder by the checkpoint that Ray Tune wants it to resume from, if there is one."""
    remove(folder)
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as source:
            shutil.copytree(source, folder)


def _report_last_evaluation(loop: Loop) -> None:
    """Report the last evaluation of an interrupted trial again: Ray Tune may not have received it."""
    train_state = loop.train_state
    evaluations = [line for line in read_metrics(loop.folder) if "dev_wer" in line and line["step"] <= train_state.step]
    has_final_layers = train_state.shrunk == len(loop.recipe.student.shrink) and loop.best.step is not None
    if evaluations and has_final_layers:
        loop.context.report(evaluations[-1])
