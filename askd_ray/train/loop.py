"""The distillation loop. It knows no Ray: a :class:`~askd_ray.train.context.Context` gives it batches and ranks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.augment import draw_seed
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import Stream
from askd_ray.data.plan import Task, skip
from askd_ray.data.shards import read_utterances
from askd_ray.distill.distiller import Distiller
from askd_ray.distill.online_teacher import OnlineTeacher, encoders_agree
from askd_ray.distill.schedules import Gap, Progress, Weights, weights_at
from askd_ray.distill.self_teacher import self_teacher
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key
from askd_ray.torch_setup import use_threads
from askd_ray.train.checkpoint import Position, latest_position, load_checkpoint, save_checkpoint
from askd_ray.train.context import Context
from askd_ray.train.dev import dev_errors
from askd_ray.train.optim import build_optimizer, lr_factor, set_lr
from askd_ray.train.shrink import Students, shrink_steps
from askd_ray.train.step import StepResult, train_step
from askd_ray.train.track import Tracker

BEST, CHECKPOINTS = "best", "checkpoints"


def make_stream(recipe: Recipe, n_mels: int, teacher_n_mels: int = 0) -> Stream:
    """Return the stream of a recipe's train shards and labels."""
    run = Run(recipe)
    return Stream(
        shards=run.shards,
        labels=run.labels,
        label_key=label_key(recipe),
        n_mels=n_mels,
        teacher_n_mels=teacher_n_mels,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=recipe.seed,
    )


def _online_teacher(recipe: Recipe) -> WindowedWhisper | None:
    """Return the teacher that runs beside the student, where the recipe wants one."""
    if not recipe.teacher.online:
        return None
    wanted = recipe.objective.hidden_states
    layers = wanted.layers if wanted.kind != "none" else ()
    return WindowedWhisper(load_whisper(recipe.teacher.model)[0], [its for _, its in layers])


def evaluation_steps(tasks: list[Task], evals_per_epoch: int) -> list[int]:
    """Return the steps after which dev is scored: evenly within each epoch, and always at its end."""
    lengths: dict[int, int] = {}
    for task in tasks:
        lengths[task.epoch] = lengths.get(task.epoch, 0) + len(task.batches)
    steps: set[int] = set()
    start = 0
    for _, n in sorted(lengths.items()):
        steps |= {start + max(1, round(n * (i + 1) / evals_per_epoch)) for i in range(evals_per_epoch)}
        start += n
    return sorted(steps)


@dataclass
class Loop:
    """One rank's distillation of a recipe's student into ``folder``; ``key`` names the inputs (see runs.py)."""

    recipe: Recipe
    context: Context
    folder: Path
    key: str

    def __post_init__(self) -> None:
        recipe, context = self.recipe, self.context
        use_threads(processes=context.world_size)
        checkpoints = self.folder / CHECKPOINTS
        self.position = latest_position(checkpoints) or Position(self.key)
        assert self.position.key == self.key, f"{checkpoints} is of another recipe"
        theirs = _online_teacher(recipe)
        torch.manual_seed(recipe.seed)  # a projection to the teacher's width starts at random
        self.students = Students(recipe, theirs.whisper.config.d_model if theirs is not None else 0)
        self.student = self.students.at(self.position.shrunk).to(context.device).train()
        self.optimizer = build_optimizer(self.student, recipe.train)
        teacher, clean_mels = None, 0
        if theirs is not None:
            teacher = OnlineTeacher(theirs.to(context.device), encoders_agree(recipe, self.student, theirs))
            clean_mels = 0 if teacher.shares_encoder else theirs.whisper.config.num_mel_bins
        self.stream = make_stream(recipe, self.model.config.num_mel_bins, clean_mels)
        own = self_teacher(recipe.objective.self_teacher, self._load_best)
        self.distiller = Distiller(recipe.objective, own, teacher, self._threshold())
        planner = self.stream.planner()
        self.n_train = sum(len(rows) for rows in planner.shards)
        self.tasks = planner.run(context.rank, context.world_size)
        self.epochs = [task.epoch for task in self.tasks for _ in task.batches]
        self.n_steps = len(self.epochs)
        self.shrink_steps = shrink_steps(recipe.student, self.n_steps)
        self.dev = read_utterances(Run(recipe).shards, "dev")
        self.evaluations = set(evaluation_steps(self.tasks, recipe.train.evals_per_epoch))
        load_checkpoint(checkpoints, self.student, self.optimizer, own, self._student_at)
        self.gap = Gap(**self.position.gap)

    @property
    def model(self) -> WhisperForConditionalGeneration:
        """The student's model; another one after each shrinking."""
        return self.student.whisper

    def run(self) -> dict[str, Any]:
        """Train from where the last checkpoint stands to the end; returns a summary, the same on every rank."""
        network = self._network()
        tracker = Tracker(self.folder, self.position.step) if self.context.rank == 0 else None
        utterances, since = 0, time.monotonic()
        for batch in self.context.batches(self.stream, skip(self.tasks, self.position.step)):
            step = self.position.step
            progress = Progress(step / self.n_steps, self.epochs[step], self.epochs[-1] + 1)
            if self._shrink(step):
                network = self._network()
            self.distiller.own.before_step(self.student, progress)
            weights = weights_at(self.recipe.objective, progress, self.gap.value)
            set_lr(self.optimizer, lr_factor(self.recipe.train, step, self.n_steps))
            torch.manual_seed(draw_seed(self.recipe.seed, step, str(self.context.rank), "dropout"))
            clip_norm = self.recipe.train.clip_norm
            result = train_step(network, self.student, self.optimizer, batch, self.distiller, weights, clip_norm)
            self.gap.update(result.means["ce"], result.means["teacher_ce"])
            utterances += len(batch.ids)
            self._move(step=step + 1)
            metrics = self._metrics(result, weights)
            if self.position.step in self.evaluations:
                metrics["utterances_per_s"] = utterances * self.context.world_size / (time.monotonic() - since)
                metrics["dev_wer"] = self._evaluate()
                utterances, since = 0, time.monotonic()
            if tracker is not None:
                tracker.log(self.position.step, metrics)
            if self.position.step in self.evaluations and self.position.shrunk == len(self.shrink_steps):
                self.context.report({"step": self.position.step, **metrics})
        if tracker is not None:
            tracker.close()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return how the run ended."""
        return {
            "steps": self.n_steps,
            "train_utterances": self.n_train,
            "dev_utterances": len(self.dev),
            "dev_wer": self.position.best_wer,
            "best_step": self.position.best_step,
            "params_m": round(sum(p.numel() for p in self.model.parameters()) / 1e6, 2),
            "workers": self.context.world_size,
        }

    def _network(self) -> nn.Module:
        return DistributedDataParallel(self.student) if self.context.world_size > 1 else self.student

    def _shrink(self, step: int) -> bool:
        """Go through the shrinkings that are due before a step: the same on every rank. Returns whether there were any.

        The search for the best student begins anew: an earlier, larger one is not what was asked for.
        """
        due = sum(at <= step for at in self.shrink_steps)
        if self.position.shrunk == due:
            return False
        while self.student.shrunk < due:
            self.student, self.optimizer = self.students.shrink(self.student, self.optimizer)
        self._move(shrunk=due, best_wer=None, best_step=None)
        return True

    def _metrics(self, result: StepResult, weights: Weights) -> dict[str, float]:
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}
        schedule = {"a": weights.teacher, "b": weights.own, "T": weights.temperature, "k": weights.k}
        return {**result.means, "grad_norm": result.grad_norm, "n_steps": self.n_steps, **schedule, **rates}

    def _evaluate(self) -> float:
        """Score dev, keep the student if it is the best so far, then write the checkpoint that knows it."""
        errors = dev_errors(self.model, self.students.tokens, self.dev, self.recipe, self.context)
        better = self.position.best_wer is None or errors.rate < self.position.best_wer
        if better:
            self._move(best_wer=errors.rate, best_step=self.position.step)
        own = self.distiller.own
        own.after_evaluation(self.student, better)
        tensors, facts = own.state()
        self._move(gap=self.gap.state(), own=facts)
        if self.context.rank == 0:
            if better:
                save_whisper(self.model, self.students.tokens, self.folder / BEST)
            save_checkpoint(self.folder / CHECKPOINTS, self.position, self.student, self.optimizer, tensors)
        if self.context.world_size > 1:
            dist.barrier()  # what rank 0 has written, the others may read now
        return errors.rate

    def _move(self, **changes: Any) -> None:
        self.position = Position(**{**vars(self.position), **changes})

    def _student_at(self, n_shrunk: int) -> WindowedWhisper:
        return self.students.at(n_shrunk).to(self.context.device)

    def _load_best(self) -> WindowedWhisper | None:
        if self.position.best_step is None:
            return None
        model = load_whisper(str(self.folder / BEST))[0]
        return self.students.around(model, self.position.shrunk).to(self.context.device)

    def _threshold(self) -> float:
        """Return AdaKD's t from the teacher's losses on the train split."""
        settings = self.recipe.objective.instance_weights
        if settings.kind == "uniform":
            return 0.0
        losses = self.stream.teacher_losses()
        return float(losses.mean() if settings.threshold == "mean" else np.percentile(losses, settings.threshold))
