"""The training loop. It does not import Ray: a :class:`~askd_ray.train.context.Context` gives it batches and rank."""

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

from askd_ray.config.schema import Recipe
from askd_ray.config.train import Train
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import SamplerFactory, Step
from askd_ray.data.schema import Batch
from askd_ray.data.shards import read_utterances
from askd_ray.files import remove
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.online_teacher import OnlineTeacher, encoders_agree
from askd_ray.objective.schedules import Gap, Progress, weights_at
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.randomness import draw_seed
from askd_ray.runs import Run
from askd_ray.torch_setup import release_memory, use_threads
from askd_ray.train.checkpoint import TrainObjects, TrainState, latest_train_state, load_checkpoint, save_checkpoint
from askd_ray.train.clock import Clock
from askd_ray.train.context import Context
from askd_ray.train.dev import dev_errors, dev_metrics
from askd_ray.train.inputs import make_batch_loader, online_teacher_model
from askd_ray.train.ledger import TRAINED, Ledger, account, read_ledger
from askd_ray.train.optim import build_optimizer, freeze, lr_factor, set_lr
from askd_ray.train.parallel import shard, unsharded_model, wrap_network
from askd_ray.train.shrink import StudentFactory, check_shrinkings, due_shrinkings
from askd_ray.train.step import Stepper
from askd_ray.train.track import Tracker
from askd_ray.train.weight_ema import WeightEma

BEST, CHECKPOINTS, LEDGER = "best", "checkpoints", "ledger"


def is_evaluated(step: Step, train: Train) -> bool:
    """Whether dev is scored after a step: at even intervals in each epoch, and always at the end of the run."""
    before, after = (math.floor(u * train.epochs * train.evals_per_epoch + 1e-9) for u in (step.begins, step.ends))
    return after > before or step.ends >= 1.0


def _check_same_step(step: int, world_size: int) -> None:
    """Check that all ranks resume from the same step: on a shared folder, a machine may see a new checkpoint late.

    Raises :class:`RuntimeError`, so that Ray Train tries again.
    """
    steps = [step] * world_size
    if world_size > 1:
        dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"the workers see checkpoints of different steps: {steps}")


@dataclass
class Loop:
    """The training of a recipe's student into ``folder`` on one rank; ``key`` identifies the inputs (see runs.py)."""

    recipe: Recipe
    context: Context
    folder: Path
    key: str
    build_sampler: SamplerFactory = length_grouped_sampler

    def __post_init__(self) -> None:
        recipe, context, train = self.recipe, self.context, self.recipe.train
        use_threads(processes=context.world_size)
        checkpoints = self.folder / CHECKPOINTS
        self.train_state = latest_train_state(checkpoints) or TrainState(self.key)
        assert self.train_state.key == self.key, f"{checkpoints} is of another recipe"
        _check_same_step(self.train_state.step, context.world_size)
        teacher_model = online_teacher_model(recipe)
        torch.manual_seed(recipe.seed)  # for the random initial weights of a projection to the teacher's width
        self.students = StudentFactory(recipe, teacher_model.whisper.config.d_model if teacher_model is not None else 0)
        student = self.students.build(self.train_state.shrunk).train()
        teacher, clean_mels = None, 0
        if teacher_model is not None:
            teacher = OnlineTeacher(teacher_model, encoders_agree(recipe, student, teacher_model))
            self._to_device(teacher_model)
            clean_mels = 0 if teacher.shares_encoder else teacher_model.whisper.config.num_mel_bins
        self.loader = make_batch_loader(recipe, student.whisper.config.num_mel_bins, clean_mels)
        student = self._to_device(student)
        self_teacher = build_self_teacher(recipe.objective.self_teacher, self._load_best)
        self.sampler = self.build_sampler(self.loader.labelled_rows(), recipe)
        check_shrinkings(recipe.student, self.sampler)
        self.dev = read_utterances(Run(recipe).shards, "dev")
        scaler = GradScaler(context.device.type, enabled=train.precision == "float16")
        optimizer = build_optimizer(student, train)
        self.objects = TrainObjects(student, optimizer, self_teacher, WeightEma(train.ema_decay), scaler)
        load_checkpoint(checkpoints, self.objects, self._build_student)
        self.distiller = Distiller(recipe.objective, self_teacher, teacher, self._adakd_threshold())
        self.gap = Gap(**self.train_state.gap)
        self.ledger = Ledger(self.folder / LEDGER, context.rank, self.train_state.step)

    @property
    def model(self) -> WhisperForConditionalGeneration:
        """The student's model. Each shrinking replaces it."""
        return self.objects.student.whisper

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end; return a summary, the same on every rank."""
        tracker = Tracker(self.folder, self.train_state.step) if self.context.rank == 0 else None
        tasks = self.sampler.tasks(self.train_state.cursor, self.context.rank, self.context.world_size)
        batches = self.context.batches(self.loader, tasks)
        clock, stepper = Clock(), None
        for step in self.sampler.steps(self.train_state.cursor):
            if self._patience_is_over():
                break
            with clock.waiting():
                micro_batches = list(islice(batches, self.sampler.batches_per_step(self.context.world_size)))
            if self._shrink_and_freeze(step) or stepper is None:
                stepper = self._stepper()
            metrics = self._train_step(stepper, step, micro_batches)
            clock.utterances += sum(len(b.ids) for b in micro_batches) * self.context.world_size
            is_evaluated_now = is_evaluated(step, self.recipe.train)
            if is_evaluated_now:
                metrics |= {**clock.rates(), **self._evaluate()}
                clock = Clock()
            if tracker is not None:
                tracker.log(self.train_state.step, metrics)
            if is_evaluated_now or self.train_state.step % self.recipe.train.checkpoint_steps == 0:
                self._save()
            if is_evaluated_now and self._has_final_layers():
                self.context.report({"step": self.train_state.step, **metrics})
        if tracker is not None:
            tracker.close()
            if self._best_folder().is_dir():
                remove(self.folder / BEST)
                self._best_folder().rename(self.folder / BEST)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return the result of the run."""
        run = Run(self.recipe)
        n_labelled = sum(len(rows) for rows in self.sampler.shards)
        prepared, labelled = ((run.record(stage) or {}).get("result") for stage in ("prepare", "label"))
        padding = self.sampler.padding()
        return {
            "steps": self.train_state.step,
            "stopped": "patience" if self.train_state.progress < 1.0 else None,
            "utterances": account(read_ledger(self.folder / LEDGER), n_labelled, prepared, labelled),
            "dev_utterances": len(self.dev),
            "dev_wer": self.train_state.best_wer,
            "best_step": self.train_state.best_step,
            "params_m": round(sum(p.numel() for p in self.model.parameters()) / 1e6, 2),
            "padding": {"audio": round(padding.audio, 4), "tokens": round(padding.tokens, 4)},
            "workers": self.context.world_size,
        }

    def _to_device(self, model: WindowedWhisper) -> WindowedWhisper:
        """Move a model to this rank's device: the whole model, or with FSDP this rank's part."""
        if self.recipe.train.parallel == "fsdp" and self.context.world_size > 1:
            return shard(model, self.context.device)
        return model.to(self.context.device)

    def _stepper(self) -> Stepper:
        student, train = self.objects.student, self.recipe.train
        network = wrap_network(student, self.context.world_size)
        return Stepper(network, student, self.objects.optimizer, self.distiller, train, self.objects.scaler)

    def _shrink_and_freeze(self, step: Step) -> bool:
        """Apply the shrinkings that are due, freeze and unfreeze parameters: the same on every rank.

        Returns whether the network has changed. A shrinking resets the best student: an earlier student has more
        layers than the recipe asks for.
        """
        due = due_shrinkings(self.recipe.student, step.begins)
        shrinks = self.train_state.shrunk < due
        while self.objects.student.shrunk < due:
            student, optimizer = self.students.shrink(self.objects.student, self.objects.optimizer)
            self.objects = replace(self.objects, student=student, optimizer=optimizer)
            self.objects.ema.restart()
        if shrinks:
            self._update_state(shrunk=due, best_wer=None, best_step=None, no_better=0)
        return freeze(self.objects.optimizer, self.recipe.train, step.begins) or shrinks

    def _train_step(self, stepper: Stepper, step: Step, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one optimizer step; return its metrics."""
        train, n_done = self.recipe.train, self.train_state.step
        progress = Progress(step.begins, step.epoch, math.ceil(train.epochs))
        self.objects.self_teacher.before_step(stepper.student, progress)
        weights = weights_at(self.recipe.objective, progress, self.gap.value)
        set_lr(stepper.optimizer, lr_factor(train, step.begins, step.ends))
        # The number of a micro-batch within the step does not depend on how many ranks there are.
        numbers = range(self.context.rank, self.context.world_size * len(batches), self.context.world_size)
        seeds = [draw_seed(self.recipe.seed, n_done, str(number), "dropout") for number in numbers]
        result = stepper.step(batches, weights, seeds)
        if result.outcome == TRAINED:
            self.gap.update(result.means["ce"], result.means["teacher_ce"])
            self.objects.ema.update(stepper.student)
        self.ledger.note(n_done + 1, step.epoch, [i for b in batches for i in b.ids], result.outcome)
        self._update_state(step=n_done + 1, progress=step.ends, cursor=step.next)
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in stepper.optimizer.param_groups}
        schedule = {"a": weights.teacher_weight, "b": weights.self_weight, "T": weights.temperature, "k": weights.k}
        return {**result.means, "grad_norm": result.grad_norm, "progress": step.ends, **schedule, **rates}

    def _evaluate(self) -> dict[str, float]:
        """Score dev, save the student if it is the best so far, and return the scores."""
        with self.objects.ema.applied(self.objects.student):
            model = unsharded_model(self.objects.student)
            errors = dev_errors(model, self.students.tokens, self.dev, self.recipe, self.context)
            scores = dev_metrics(errors, self.recipe.tune.ood_domains)
            wer = scores["dev_wer"]
            better = self.train_state.best_wer is None or wer < self.train_state.best_wer
            if better:
                self._update_state(best_wer=wer, best_step=self.train_state.step)
                if self.context.rank == 0:
                    save_whisper(model, self.students.tokens, self._best_folder())
        self._update_state(no_better=0 if better else self.train_state.no_better + 1)
        self.objects.self_teacher.after_evaluation(self.objects.student, better)
        release_memory()
        return scores

    def _save(self) -> None:
        """Write a checkpoint: first each rank writes its part of the ledger, then rank 0 writes everything else."""
        tensors, facts = self.objects.self_teacher.state()
        self._update_state(gap=self.gap.state(), self_teacher=facts)
        self.ledger.write(self.train_state.step)
        self._barrier()
        writes = self.context.rank == 0
        save_checkpoint(self.folder / CHECKPOINTS, self.train_state, self.objects, tensors, writes)
        if writes:
            for student in self.folder.glob(f"*{BEST}-step-*"):  # also half-written ones of a killed process
                if student != self._best_folder():
                    remove(student)
        self._barrier()  # the other ranks may read the checkpoint only from here on

    def _best_folder(self) -> Path:
        """The folder of the best student during the run; its name has the step, so each checkpoint finds its own."""
        return self.folder / f"{BEST}-step-{self.train_state.best_step or 0:08d}"

    def _barrier(self) -> None:
        if self.context.world_size > 1:
            dist.barrier()

    def _patience_is_over(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self._has_final_layers() and self.train_state.no_better >= patience

    def _has_final_layers(self) -> bool:
        return self.train_state.shrunk == len(self.recipe.student.shrink)

    def _update_state(self, **changes: Any) -> None:
        self.train_state = TrainState(**{**vars(self.train_state), **changes})

    def _build_student(self, n_shrunk: int) -> WindowedWhisper:
        return self.students.build(n_shrunk).to(self.context.device)

    def _load_best(self) -> WindowedWhisper | None:
        if self.train_state.best_step is None:
            return None
        model = load_whisper(str(self._best_folder()))[0]
        return self.students.wrap(model, self.train_state.shrunk).to(self.context.device)

    def _adakd_threshold(self) -> float:
        """Return AdaKD's threshold t, computed from the teacher's losses on the train split."""
        settings = self.recipe.objective.instance_weights
        if settings.kind == "uniform":
            return 0.0
        losses = self.loader.teacher_losses()
        return float(losses.mean() if settings.threshold == "mean" else np.percentile(losses, settings.threshold))
