"""The distillation loop. It knows no Ray: a :class:`~askd_ray.train.context.Context` gives it batches and ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.amp.grad_scaler import GradScaler
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.augment import draw_seed
from askd_ray.config.schema import Recipe
from askd_ray.config.train import Train
from askd_ray.data.collate import BatchLoader
from askd_ray.data.plan import Step
from askd_ray.data.schema import Batch
from askd_ray.data.shards import read_utterances
from askd_ray.distill.distiller import Distiller
from askd_ray.distill.online_teacher import OnlineTeacher, encoders_agree
from askd_ray.distill.schedules import Gap, Progress, weights_at
from askd_ray.distill.self_teacher import self_teacher
from askd_ray.files import remove
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key
from askd_ray.torch_setup import release_memory, use_threads
from askd_ray.train.checkpoint import TrainObjects, TrainState, latest_position, load_checkpoint, save_checkpoint
from askd_ray.train.clock import Clock
from askd_ray.train.context import Context
from askd_ray.train.dev import dev_errors, dev_metrics
from askd_ray.train.ledger import TRAINED, Ledger, account, read_ledger
from askd_ray.train.optim import build_optimizer, freeze, lr_factor, set_lr
from askd_ray.train.parallel import network_of, shard, whole_model
from askd_ray.train.shrink import StudentFactory, check_shrinkings, due_shrinkings
from askd_ray.train.step import Stepper
from askd_ray.train.track import Tracker
from askd_ray.train.weight_ema import WeightEma

BEST, CHECKPOINTS, LEDGER = "best", "checkpoints", "ledger"


def make_batch_loader(recipe: Recipe, n_mels: int, teacher_n_mels: int = 0) -> BatchLoader:
    """Return the stream of a recipe's train shards and labels."""
    run = Run(recipe)
    return BatchLoader(
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


def is_evaluated(step: Step, train: Train) -> bool:
    """Whether dev is scored after a step: evenly within each epoch, and always at the end of the run."""
    before, after = (math.floor(u * train.epochs * train.evals_per_epoch + 1e-9) for u in (step.begins, step.ends))
    return after > before or step.ends >= 1.0


def _check_same_step(step: int, world_size: int) -> None:
    """Refuse to go on from different checkpoints: a shared folder may show one machine what is new later than another.

    Raises :class:`RuntimeError`, so that Ray Train tries again.
    """
    steps = [step] * world_size
    if world_size > 1:
        dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"the workers see checkpoints of different steps: {steps}")


@dataclass
class Loop:
    """One rank's distillation of a recipe's student into ``folder``; ``key`` names the inputs (see runs.py)."""

    recipe: Recipe
    context: Context
    folder: Path
    key: str

    def __post_init__(self) -> None:
        recipe, context, train = self.recipe, self.context, self.recipe.train
        use_threads(processes=context.world_size)
        checkpoints = self.folder / CHECKPOINTS
        self.position = latest_position(checkpoints) or TrainState(self.key)
        assert self.position.key == self.key, f"{checkpoints} is of another recipe"
        _check_same_step(self.position.step, context.world_size)
        theirs = _online_teacher(recipe)
        torch.manual_seed(recipe.seed)  # a projection to the teacher's width starts at random
        self.students = StudentFactory(recipe, theirs.whisper.config.d_model if theirs is not None else 0)
        student = self.students.at(self.position.shrunk).train()
        teacher, clean_mels = None, 0
        if theirs is not None:
            teacher = OnlineTeacher(theirs, encoders_agree(recipe, student, theirs))
            self._place(theirs)
            clean_mels = 0 if teacher.shares_encoder else theirs.whisper.config.num_mel_bins
        self.stream = make_batch_loader(recipe, student.whisper.config.num_mel_bins, clean_mels)
        student = self._place(student)
        own = self_teacher(recipe.objective.self_teacher, self._load_best)
        self.planner = self.stream.planner()
        check_shrinkings(recipe.student, self.planner)
        self.dev = read_utterances(Run(recipe).shards, "dev")
        scaler = GradScaler(context.device.type, enabled=train.precision == "float16")
        optimizer = build_optimizer(student, train)
        self.state = TrainObjects(student, optimizer, own, WeightEma(train.ema_decay), scaler)
        load_checkpoint(checkpoints, self.state, self._student_at)
        self.distiller = Distiller(recipe.objective, own, teacher, self._threshold())
        self.gap = Gap(**self.position.gap)
        self.ledger = Ledger(self.folder / LEDGER, context.rank, self.position.step)

    @property
    def model(self) -> WhisperForConditionalGeneration:
        """The student's model; another one after each shrinking."""
        return self.state.student.whisper

    def run(self) -> dict[str, Any]:
        """Train from where the last checkpoint stands to the end; returns a summary, the same on every rank."""
        tracker = Tracker(self.folder, self.position.step) if self.context.rank == 0 else None
        tasks = self.planner.tasks(self.position.place, self.context.rank, self.context.world_size)
        batches = self.context.batches(self.stream, tasks)
        clock, stepper = Clock(), None
        for step in self.planner.steps(self.position.place):
            if self._patience_is_over():
                break
            with clock.waiting():
                micro_batches = list(islice(batches, self.planner.batches_per_step(self.context.world_size)))
            if self._reshape(step) or stepper is None:
                stepper = self._stepper()
            metrics = self._step(stepper, step, micro_batches)
            clock.utterances += sum(len(b.ids) for b in micro_batches) * self.context.world_size
            is_evaluated_now = is_evaluated(step, self.recipe.train)
            if is_evaluated_now:
                metrics |= {**clock.rates(), **self._evaluate()}
                clock = Clock()
            if tracker is not None:
                tracker.log(self.position.step, metrics)
            if is_evaluated_now or self.position.step % self.recipe.train.checkpoint_steps == 0:
                self._save()
            if is_evaluated_now and self._has_final_layers():
                self.context.report({"step": self.position.step, **metrics})
        if tracker is not None:
            tracker.close()
            if self._best().is_dir():
                remove(self.folder / BEST)
                self._best().rename(self.folder / BEST)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return how the run ended."""
        run = Run(self.recipe)
        n_labelled = sum(len(rows) for rows in self.planner.shards)
        prepared, labelled = ((run.record(stage) or {}).get("result") for stage in ("prepare", "label"))
        padding = self.planner.padding()
        return {
            "steps": self.position.step,
            "stopped": "patience" if self.position.progress < 1.0 else None,
            "utterances": account(read_ledger(self.folder / LEDGER), n_labelled, prepared, labelled),
            "dev_utterances": len(self.dev),
            "dev_wer": self.position.best_wer,
            "best_step": self.position.best_step,
            "params_m": round(sum(p.numel() for p in self.model.parameters()) / 1e6, 2),
            "padding": {"audio": round(padding.audio, 4), "tokens": round(padding.tokens, 4)},
            "workers": self.context.world_size,
        }

    def _place(self, model: WindowedWhisper) -> WindowedWhisper:
        """Put a model where this rank computes: all of it or a share."""
        if self.recipe.train.parallel == "fsdp" and self.context.world_size > 1:
            return shard(model, self.context.device)
        return model.to(self.context.device)

    def _stepper(self) -> Stepper:
        student, train = self.state.student, self.recipe.train
        network = network_of(student, self.context.world_size)
        return Stepper(network, student, self.state.optimizer, self.distiller, train, self.state.scaler)

    def _reshape(self, step: Step) -> bool:
        """Go through the shrinkings that are due, freeze and unfreeze: the same on every rank.

        Returns whether the network is another one. The search for the best student begins anew after a shrinking: an
        earlier, larger one is not what was asked for.
        """
        due = due_shrinkings(self.recipe.student, step.begins)
        shrinks = self.position.shrunk < due
        while self.state.student.shrunk < due:
            student, optimizer = self.students.shrink(self.state.student, self.state.optimizer)
            self.state = replace(self.state, student=student, optimizer=optimizer)
            self.state.ema.restart()
        if shrinks:
            self._move(shrunk=due, best_wer=None, best_step=None, no_better=0)
        return freeze(self.state.optimizer, self.recipe.train, step.begins) or shrinks

    def _step(self, stepper: Stepper, step: Step, batches: Sequence[Batch]) -> dict[str, float]:
        """Take a step; returns what it says of itself."""
        train, number = self.recipe.train, self.position.step
        progress = Progress(step.begins, step.epoch, math.ceil(train.epochs))
        self.state.own.before_step(stepper.student, progress)
        weights = weights_at(self.recipe.objective, progress, self.gap.value)
        set_lr(stepper.optimizer, lr_factor(train, step.begins, step.ends))
        lanes = range(self.context.rank, self.context.world_size * len(batches), self.context.world_size)
        seeds = [draw_seed(self.recipe.seed, number, str(lane), "dropout") for lane in lanes]
        result = stepper.step(batches, weights, seeds)
        if result.outcome == TRAINED:
            self.gap.update(result.means["ce"], result.means["teacher_ce"])
            self.state.ema.update(stepper.student)
        self.ledger.note(number + 1, step.epoch, [i for b in batches for i in b.ids], result.outcome)
        self._move(step=number + 1, progress=step.ends, place=step.next)
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in stepper.optimizer.param_groups}
        schedule = {"a": weights.teacher, "b": weights.own, "T": weights.temperature, "k": weights.k}
        return {**result.means, "grad_norm": result.grad_norm, "progress": step.ends, **schedule, **rates}

    def _evaluate(self) -> dict[str, float]:
        """Score dev, and keep the student if it is the best so far; returns the scores."""
        with self.state.ema.applied(self.state.student):
            model = whole_model(self.state.student)
            errors = dev_errors(model, self.students.tokens, self.dev, self.recipe, self.context)
            scores = dev_metrics(errors, self.recipe.tune.ood_domains)
            wer = scores["dev_wer"]
            better = self.position.best_wer is None or wer < self.position.best_wer
            if better:
                self._move(best_wer=wer, best_step=self.position.step)
                if self.context.rank == 0:
                    save_whisper(model, self.students.tokens, self._best())
        self._move(no_better=0 if better else self.position.no_better + 1)
        self.state.own.after_evaluation(self.state.student, better)
        release_memory()
        return scores

    def _save(self) -> None:
        """Write a checkpoint: first each rank its part of the ledger, then rank 0 all else."""
        tensors, facts = self.state.own.state()
        self._move(gap=self.gap.state(), own=facts)
        self.ledger.write(self.position.step)
        self._meet()
        writes = self.context.rank == 0
        save_checkpoint(self.folder / CHECKPOINTS, self.position, self.state, tensors, writes)
        if writes:
            for student in self.folder.glob(f"*{BEST}-step-*"):  # also what a killed process has left half written
                if student != self._best():
                    remove(student)
        self._meet()  # what rank 0 has written, the others may read now

    def _best(self) -> Path:
        """The best student's folder while the run goes on: a checkpoint knows that of its own time."""
        return self.folder / f"{BEST}-step-{self.position.best_step or 0:08d}"

    def _meet(self) -> None:
        if self.context.world_size > 1:
            dist.barrier()

    def _patience_is_over(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self._has_final_layers() and self.position.no_better >= patience

    def _has_final_layers(self) -> bool:
        return self.position.shrunk == len(self.recipe.student.shrink)

    def _move(self, **changes: Any) -> None:
        self.position = TrainState(**{**vars(self.position), **changes})

    def _student_at(self, n_shrunk: int) -> WindowedWhisper:
        return self.students.at(n_shrunk).to(self.context.device)

    def _load_best(self) -> WindowedWhisper | None:
        if self.position.best_step is None:
            return None
        model = load_whisper(str(self._best()))[0]
        return self.students.around(model, self.position.shrunk).to(self.context.device)

    def _threshold(self) -> float:
        """Return AdaKD's t from the teacher's losses on the train split."""
        settings = self.recipe.objective.instance_weights
        if settings.kind == "uniform":
            return 0.0
        losses = self.stream.teacher_losses()
        return float(losses.mean() if settings.threshold == "mean" else np.percentile(losses, settings.threshold))
