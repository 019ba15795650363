"""One trial of a search: the training loop in a Ray Tune process, or in Ray Train workers that a trial starts."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from askd_ray.config.candidate import FieldValues, read_values, with_values
from askd_ray.config.schema import Recipe
from askd_ray.config.tune import Tune
from askd_ray.data.collate import BatchLoader
from askd_ray.data.sampler import DataCursor, Sampler
from askd_ray.data.schema import Batch
from askd_ray.data.shards import sealed
from askd_ray.files import remove
from askd_ray.ray_errors import user_error
from askd_ray.search.ray_resources import worker_resources
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.loop import Loop
from askd_ray.train.ray_trainer import NoRetries
from askd_ray.train.track import read_metrics

SCORE, EVALUATIONS, VALUES = "score", "evaluations", "values"
TRIALS_FOLDER, TRAIN_FOLDER = "trials", "train"
"""The folders of a search with the students of its trials, and with the files of Ray Train."""


def run_trial(recipe: Recipe, values: FieldValues, search: Path, key: str, features: Path | None = None) -> None:
    """Train a candidate into ``search/trials/<trial id>``; ``key`` is the key of the search, and ``features`` the
    folder of decoded clips that the trials share, if any.

    An interrupted trial resumes from its checkpoint. With PBT, a trial may resume from another trial's checkpoint with
    its own values: checkpoints do not store the searched values, and all trials have the key of the search.
    """
    folder = search / TRIALS_FOLDER / tune.get_context().get_trial_id()
    if recipe.tune.scheduler == "pbt":
        _restore_checkpoint(folder)
    context = TuneContext(recipe, values, folder, features)
    _train(recipe, values, context, key, processes=recipe.tune.concurrent)


def run_trial_on_workers(
    recipe: Recipe, values: FieldValues, search: Path, key: str, features: Path | None = None
) -> None:
    """Train a candidate as :func:`run_trial` does, on ``tune.trial_workers`` Ray Train workers."""
    trial, workers = tune.get_context().get_trial_id(), recipe.train.workers
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "values": values,
            "folder": str(search / TRIALS_FOLDER / trial),
            "features": None if features is None else str(features),
            "key": key,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=recipe.tune.trial_workers,
            use_gpu=workers.gpu,
            placement_strategy=workers.placement,
            resources_per_worker=worker_resources(recipe),
        ),
        run_config=ray.train.RunConfig(
            name=f"{trial}-{uuid4().hex[:8]}",  # a new name: the loop resumes by itself, with its own checkpoints
            storage_path=str(search / TRAIN_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[TuneReportCallback(), NoRetries()],
        ),
    )
    with user_error():
        trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    """Train on one worker of a trial."""
    with user_error():
        recipe, features = Recipe.model_validate(config["recipe"]), config["features"]
        context = TrialWorkerContext(
            recipe, config["values"], Path(config["folder"]), None if features is None else Path(features)
        )
        n_local = ray.train.get_context().get_local_world_size()
        _train(recipe, config["values"], context, config["key"], processes=recipe.tune.concurrent * n_local)


def _train(recipe: Recipe, values: FieldValues, context: "TuneContext", key: str, processes: int) -> None:
    """Train a candidate on this rank, one of up to ``processes`` on this machine."""
    with sealed("test"):
        loop = build_loop(with_values(recipe, values), context, context.folder, key)
        use_threads(processes=processes)
        if recipe.tune.scheduler != "pbt":
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
        self._settings, self.folder, self._features = recipe.tune, folder, features
        self._values = json.dumps({path: values[path] for path in read_values(recipe, values)})

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Build the batches in this process; the first trial that needs a clip decodes it for all trials."""
        return super().batches(replace(loader, features_folder=self._features), sampler, cursor)

    def report(self, metrics: dict[str, float]) -> None:
        """Report an evaluation; with PBT also the checkpoint, from which another trial may resume."""
        is_pbt = self._settings.scheduler == "pbt"
        checkpoint = tune.Checkpoint.from_directory(self.folder) if is_pbt else None
        tune.report(self._results(metrics), checkpoint=checkpoint)

    def _results(self, metrics: dict[str, float]) -> dict[str, Any]:
        evaluations = [
            line for line in read_metrics(self.folder) if "dev_wer" in line and line["step"] <= metrics["step"]
        ]
        results = {SCORE: score(metrics, self._settings), EVALUATIONS: len(evaluations), VALUES: self._values}
        return {**metrics, **results}


class TrialWorkerContext(TuneContext):
    """The context of one worker of a trial; Ray Train hands the reports of rank 0 to Ray Tune.

    The batches are built in the worker. Tasks of Ray Data would need CPUs that other trials may hold.
    """

    def __init__(self, recipe: Recipe, values: FieldValues, folder: Path, features: Path | None):
        super().__init__(recipe, values, folder, features)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        if recipe.train.workers.gpu:
            device = get_device()
            assert isinstance(device, torch.device)
            self.device = device

    def report(self, metrics: dict[str, float]) -> None:
        """Report an evaluation; every rank calls this, and the report of rank 0 counts."""
        ray.train.report(self._results(metrics) if self.rank == 0 else {})


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
