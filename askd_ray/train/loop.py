"""The distillation loop. It knows no Ray: a :class:`~askd_ray.train.context.Context` gives it batches and ranks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from askd_ray.audio.augment import draw_seed
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import Stream
from askd_ray.data.plan import Task, skip
from askd_ray.data.shards import read_utterances
from askd_ray.distill.schedules import weights_at
from askd_ray.distill.self_teacher import Snapshot
from askd_ray.models.load import save_whisper
from askd_ray.models.student import build_student
from askd_ray.models.windows import WindowedWhisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key
from askd_ray.torch_setup import use_threads
from askd_ray.train.checkpoint import Position, load_checkpoint, save_checkpoint
from askd_ray.train.context import Context
from askd_ray.train.dev import dev_errors
from askd_ray.train.optim import build_optimizer, lr_factor, set_lr
from askd_ray.train.step import StepResult, train_step
from askd_ray.train.track import Tracker

BEST, CHECKPOINTS = "best", "checkpoints"


def make_stream(recipe: Recipe, n_mels: int) -> Stream:
    """Return the stream of a recipe's train shards and labels."""
    run = Run(recipe)
    return Stream(
        shards=run.shards,
        labels=run.labels,
        label_key=label_key(recipe.teacher),
        tokenizer=run.labels / "tokenizer.json",
        n_mels=n_mels,
        train=recipe.train,
        window=recipe.window,
        spec_augment=recipe.spec_augment,
        seed=recipe.seed,
    )


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
        self.model, self.tokens = build_student(recipe.student, recipe.teacher.model)
        self.student = WindowedWhisper(self.model).to(context.device).train()
        self.optimizer = build_optimizer(self.model, recipe.train)
        self.snapshot = Snapshot(recipe.objective.self_teacher)
        self.stream = make_stream(recipe, self.model.config.num_mel_bins)
        planner = self.stream.planner()
        self.n_train = sum(len(rows) for rows in planner.shards)
        self.tasks = planner.run(context.rank, context.world_size)
        self.n_steps = sum(len(task.batches) for task in self.tasks)
        self.dev = read_utterances(Run(recipe).shards, "dev")
        self.evaluations = set(evaluation_steps(self.tasks, recipe.train.evals_per_epoch))
        position = load_checkpoint(folder := self.folder / CHECKPOINTS, self.student, self.optimizer, self.snapshot)
        assert position is None or position.key == self.key, f"{folder} is of another recipe"
        self.position = position or Position(self.key)

    def run(self) -> dict[str, Any]:
        """Train from where the last checkpoint stands to the end; returns a summary, the same on every rank."""
        network = DistributedDataParallel(self.student) if self.context.world_size > 1 else self.student
        tracker = Tracker(self.folder, self.position.step) if self.context.rank == 0 else None
        utterances, since = 0, time.monotonic()
        for batch in self.context.batches(self.stream, skip(self.tasks, self.position.step)):
            step = self.position.step
            u = step / self.n_steps
            self.snapshot.update(self.student, u)
            weights = weights_at(self.recipe.objective, u)
            set_lr(self.optimizer, lr_factor(self.recipe.train, step, self.n_steps))
            torch.manual_seed(draw_seed(self.recipe.seed, step, str(self.context.rank), "dropout"))
            settings = self.recipe.teacher.temperature, self.recipe.train.clip_norm
            result = train_step(network, self.optimizer, batch, self.snapshot, weights, *settings)
            utterances += len(batch.ids)
            self._move(step=step + 1, snapshot_taken=self.snapshot.taken)
            metrics = self._metrics(result, weights)
            if self.position.step in self.evaluations:
                metrics["utterances_per_s"] = utterances * self.context.world_size / (time.monotonic() - since)
                metrics["dev_wer"] = self._evaluate()
                utterances, since = 0, time.monotonic()
            if tracker is not None:
                tracker.log(self.position.step, metrics)
            if self.position.step in self.evaluations:
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

    def _metrics(self, result: StepResult, weights: tuple[float, float]) -> dict[str, float]:
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}
        losses = {name: getattr(result, name) for name in ("loss", "ce", "kd", "self_kd", "grad_norm")}
        return {**losses, "n_steps": self.n_steps, "a": weights[0], "b": weights[1], **rates}

    def _evaluate(self) -> float:
        """Score dev, keep the student if it is the best so far, then write the checkpoint that knows it."""
        errors = dev_errors(self.model, self.tokens, self.dev, self.recipe.window.silence_s, self.context)
        better = self.position.best_wer is None or errors.rate < self.position.best_wer
        if better:
            self._move(best_wer=errors.rate, best_step=self.position.step)
        if self.context.rank == 0:
            if better:
                save_whisper(self.model, self.tokens, self.folder / BEST)
            folder = self.folder / CHECKPOINTS
            save_checkpoint(folder, self.position, self.student, self.optimizer, self.snapshot)
        return errors.rate

    def _move(self, **changes: Any) -> None:
        self.position = Position(**{**vars(self.position), **changes})
