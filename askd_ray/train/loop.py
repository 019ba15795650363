"""The training loop. It does not import Ray: a :class:`~askd_ray.train.context.Context` gives it batches and rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.config.train import Train
from askd_ray.data.collate import BatchLoader
from askd_ray.data.dev import DevClips
from askd_ray.data.sampler import Sampler, Step, batches_per_step, steps_from
from askd_ray.data.schema import Batch
from askd_ray.models.student import StudentKind
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.schedules import Gap, Progress, weights_at
from askd_ray.randomness import draw_seed
from askd_ray.runs import Run
from askd_ray.torch_setup import release_memory
from askd_ray.train.best import BestStudent
from askd_ray.train.checkpoint import TrainObjects, TrainState, save_checkpoint
from askd_ray.train.checkpoint_store import CheckpointStore
from askd_ray.train.clock import Clock
from askd_ray.train.context import Context
from askd_ray.train.dev import dev_errors, dev_metrics, dev_score
from askd_ray.train.ledger import TRAINED, Ledger, account
from askd_ray.train.optim import freeze, lr_factor, set_lr
from askd_ray.train.parallel import unsharded, wrap_network
from askd_ray.train.shrink import due_shrinkings, shrink
from askd_ray.train.step import Stepper
from askd_ray.train.track import Tracker

CHECKPOINTS, LEDGER, SELF_TEACHER = "checkpoints", "ledger", "self_teacher"


def is_evaluated(step: Step, train: Train) -> bool:
    """Whether dev is scored after a step: at even intervals in each epoch, and always at the end of the run."""
    before, after = (math.floor(u * train.epochs * train.evals_per_epoch + 1e-9) for u in (step.begins, step.ends))
    return after > before or step.ends >= 1.0


@dataclass
class Loop:
    """The training of a recipe's student into ``folder`` on one rank; :mod:`askd_ray.train.build` makes its parts."""

    recipe: Recipe
    context: Context
    folder: Path
    student_kind: StudentKind
    loader: BatchLoader
    sampler: Sampler
    dev: DevClips
    distiller: Distiller
    objects: TrainObjects
    best: BestStudent
    gap: Gap
    ledger: Ledger
    train_state: TrainState
    store: CheckpointStore

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end; return a summary on rank 0, and {} on other ranks."""
        with self.store:
            return self._run()

    def _run(self) -> dict[str, Any]:
        tracker = Tracker(self.folder, self.train_state.step) if self.context.rank == 0 else None
        batches = self.context.batches(self.loader, self.sampler, self.train_state.cursor)
        n_micro_batches = batches_per_step(self.sampler, self.context.world_size)
        clock, stepper = Clock(), None
        for step in steps_from(self.sampler, self.train_state.cursor):
            if self._patience_is_over():
                break
            with clock.waiting():
                micro_batches = list(islice(batches, n_micro_batches))
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
        if tracker is None:
            return {}
        tracker.close()
        self.best.finish()
        self.store.finish(self.train_state)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return the result of the run."""
        run = Run(self.recipe)
        prepared, labelled = ((run.record(stage) or {}).get("result") for stage in ("prepare", "label"))
        padding = self.sampler.padding()
        return {
            "steps": self.train_state.step,
            "stopped": "patience" if self.train_state.progress < 1.0 else None,
            "utterances": account(self.folder / LEDGER, self.sampler.index.n_rows, prepared, labelled),
            "dev_utterances": self.dev.n_utterances,
            "dev_derived": self.dev.n_derived,
            "dev_wer": self.best.wer,
            "dev_score": self.best.score,
            "best_step": self.best.step,
            "params_m": round(self.objects.student.n_params / 1e6, 2),
            "padding": {"audio": round(padding.audio, 4), "tokens": round(padding.tokens, 4)},
            "workers": self.context.world_size,
        }

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
            student, optimizer = self.objects.student, self.objects.optimizer
            student, optimizer = shrink(self.student_kind, student, optimizer, self.recipe.train.optimizer)
            self.objects = replace(self.objects, student=student, optimizer=optimizer)
            self.objects.ema.restart()
        if shrinks:
            self._update_state(shrunk=due)
            self.best.restart(due)
        return freeze(self.objects.optimizer, self.recipe.train.optimizer.frozen_until, step.begins) or shrinks

    def _train_step(self, stepper: Stepper, step: Step, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one optimizer step; return its metrics."""
        train, n_done = self.recipe.train, self.train_state.step
        progress = Progress(step.begins, step.epoch, math.ceil(train.epochs))
        self.objects.self_teacher.before_step(stepper.student, progress)
        weights = weights_at(self.recipe.objective, progress, self.gap.value)
        set_lr(stepper.optimizer, lr_factor(train.optimizer, step.begins, step.ends))
        # The number of a micro-batch within the step does not depend on how many ranks there are.
        numbers = range(self.context.rank, self.context.world_size * len(batches), self.context.world_size)
        seeds = [draw_seed(self.recipe.seed, n_done, str(number), "dropout") for number in numbers]
        result = stepper.step(batches, weights, seeds)
        if result.outcome == TRAINED:
            if result.means["taught"] > 0.0:
                self.gap.update(result.means["taught_ce"], result.means["teacher_ce"])
            self.objects.ema.update(stepper.student)
        self.ledger.note(n_done + 1, step.epoch, batches, result.outcome)
        self._update_state(step=n_done + 1, progress=step.ends, cursor=step.next)
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in stepper.optimizer.param_groups}
        schedule = {
            "a": weights.teacher_weight,
            "b": weights.self_weight,
            "T": weights.temperature,
            "k": weights.k,
            "s": weights.states_weight,
        }
        return {**result.means, "grad_norm": result.grad_norm, "progress": step.ends, **schedule, **rates}

    def _evaluate(self) -> dict[str, float]:
        """Score dev, save the student if it is the best so far, and return the scores."""
        with self.objects.ema.applied(self.objects.student):
            student = unsharded(self.objects.student, self.student_kind)
            window = DecodingWindow.of(self.recipe.window)
            errors = dev_errors(student, self.student_kind, self.dev, window, self.context)
            scores = dev_metrics(errors, self.dev.silent_min, self.recipe.tune.ood_domains)
            scores["dev_score"] = dev_score(scores, self.recipe.train.selection)
            better = self.best.receive(scores["dev_score"], scores["dev_wer"], self.train_state.step)
            if better and self.context.rank == 0:
                self.best.save(student)
        self.objects.self_teacher.after_evaluation(self.objects.student, better)
        release_memory()
        return scores

    def _save(self) -> None:
        """Write a checkpoint: first each rank writes its part of the ledger, then rank 0 writes everything else.

        For a run on a store, it is uploaded while the training goes on.
        """
        tensors, facts = self.objects.self_teacher.state()
        best = {"best_score": self.best.score, "best_wer": self.best.wer, "best_step": self.best.step}
        self._update_state(gap=self.gap.state(), self_teacher=facts, no_better=self.best.no_better, **best)
        self.store.add(self.ledger.write(self.train_state.step))
        self.store.wait()
        self._barrier()
        writes = self.context.rank == 0
        save_checkpoint(self.folder / CHECKPOINTS, self.train_state, self.objects, tensors, writes)
        if writes:
            self.best.remove_others()
            self.objects.self_teacher.after_checkpoint()
            self.store.commit(self.train_state)
        self._barrier()  # the other ranks may read the checkpoint only from here on
        if not writes:
            self.objects.self_teacher.after_checkpoint()

    def _barrier(self) -> None:
        if self.context.world_size > 1:
            dist.barrier()

    def _patience_is_over(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self._has_final_layers() and self.best.no_better >= patience

    def _has_final_layers(self) -> bool:
        return self.train_state.shrunk == len(self.recipe.student.shrink)

    def _update_state(self, **changes: Any) -> None:
        self.train_state = replace(self.train_state, **changes)
