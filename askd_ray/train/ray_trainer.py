"""The stage `distill`: Ray Train workers run the loop, Ray Data streams their batches."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast
from uuid import uuid4

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, UserCallback, WorkerGroupError
from ray.train.torch import TorchTrainer, get_device

from askd_ray.audio.sounds import check_sounds
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.config.train import PLACEMENT, TRAININGS
from askd_ray.data.collate import BatchLoader
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.ray_stream import ray_batches
from askd_ray.data.sampler import DataCursor, Sampler
from askd_ray.data.schema import Batch
from askd_ray.data.shards import shard_paths
from askd_ray.errors import AskdError
from askd_ray.models import cost
from askd_ray.objective import schedules
from askd_ray.progress import Bar, bar, console
from askd_ray.ray_cluster import connect
from askd_ray.ray_errors import keyboard_interrupt, user_error
from askd_ray.results.texts import percent
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.torch_setup import device_of
from askd_ray.train.build import build_loop, student_kind
from askd_ray.train.checkpoint import latest_train_state
from askd_ray.train.checkpoint_store import read_manifest
from askd_ray.train.inputs import make_batch_loader, vocabulary_lines
from askd_ray.train.loop import CHECKPOINTS
from askd_ray.train.mlflow_mirror import check_installed, mirrored
from askd_ray.train.shrink import check_shrinkings
from askd_ray.train.track import StepMetrics, follow


class RayTrainContext:
    """The context of a Ray Train worker; with ``use_gpu`` it computes on the GPU that Ray assigned to it."""

    def __init__(self, use_gpu: bool) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        # Without an assigned GPU, Ray's get_device() returns the machine's first GPU.
        device = get_device() if use_gpu else torch.device(device_of(use_gpu))
        assert isinstance(device, torch.device)
        self.device = device

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        """Stream the batches through Ray Data."""
        return ray_batches(loader, sampler, cursor, self.rank, self.world_size)

    def report(self, metrics: dict[str, float]) -> None:
        """Report to Ray Train, without a checkpoint: we write checkpoints ourselves, as Ray registers them late."""
        ray.train.report(metrics)


def distill(recipe: Recipe, force: bool = False) -> Result:
    """Distil the student of a recipe into ``runs/<name>/distill``; a killed run resumes from its last checkpoint.

    Returns and records the loop's summary. Raises :class:`AskdError` when labels are missing or stale, or when the
    folder holds a run of another recipe (``force`` starts over).
    """
    recipe = with_absolute_paths(recipe)  # a worker has another working directory
    run = Run(recipe)
    key = distill_key(run)
    if trained(run, key) is None or force:
        sampler = check_inputs(recipe)
        console.print("\n".join([cost.line(student_kind(recipe).costs()), *vocabulary_lines(recipe)]))
        padding = sampler.padding()
        console.print(f"padding: {padding.audio:.1%} of the audio, {padding.tokens:.1%} of the tokens")
        clear_stale_run(run, key, force)

    def work() -> Result:
        connect(use_gpu=recipe.train.workers.gpu)
        with user_error():
            result = _fit(recipe, run, key)
        best = f"dev WER {percent(result['dev_wer'])} % at step {result['best_step']} of {result['steps']}"
        console.print(f"distilled: {best}, in {run.place / 'distill/best'}")
        return result

    return run_stage(distill_stage(run, key, work), force)


def distill_stage(run: Run, key: str, work: Callable[[], Result]) -> StageWork:
    """Return the stage `distill` of a run; ``work`` trains, and returns the loop's summary."""

    def summary(result: Result) -> str:
        return f"dev WER {percent(result['dev_wer'])} %, {run.place / 'distill/best'}"

    return StageWork(run, "distill", key, trained(run, key), work, summary, forgets=False)


def trained(run: Run, key: str) -> Result | None:
    """Return the loop's summary of a finished training with this key, if its student is still there."""
    return run.finished("distill", key) if run.has("distill/best") else None


def distill_key(run: Run) -> str:
    """Return the key of everything that decides the student; devices and the number of workers do not."""
    r = run.recipe
    one_worker = r.train.on_one_worker()  # its steps are those of all workers
    train = one_worker.model_dump(mode="json", exclude=PLACEMENT | TRAININGS)
    window = r.window.model_dump(mode="json", exclude={"choose_on_dev"})  # the export reads it
    return stage_key(r.student, window, r.augment, r.objective, train, r.seed, run.key("label"))


def check_inputs(recipe: Recipe) -> Sampler:
    """Check the inputs before any worker starts; return the plan of the run.

    Raises :class:`AskdError` when weights add up to more than 1, when noise files, room files, labels or splits are
    missing, when labels are stale, when the student's layers do not exist or cannot be merged, when its vocabulary is
    not the teacher's, or when the recipe asks for MLflow and MLflow is not installed.
    """
    run = Run(recipe)
    check_installed(recipe.tracking)
    schedules.check(recipe.objective, recipe.train.epochs)
    check_sounds(recipe.augment)
    sampler = length_grouped_sampler(make_batch_loader(recipe, n_mels=80).rows(), recipe)
    check_shrinkings(recipe.student, sampler)
    shard_paths(run.shards, "dev")
    student_kind(recipe)
    return sampler


def clear_stale_run(run: Run, key: str, force: bool) -> None:
    """Remove a finished or stale training from the run's folder; keep one that this run can resume.

    Raises :class:`AskdError` when the folder holds a training with other settings, unless ``force`` is set.
    """
    if force:
        run.clear("distill")
        return
    if run.record("distill") is not None or _key_of_checkpoint(run) not in (None, key):
        raise AskdError(
            f"{run.place / 'distill'} holds a student of other settings: give this run another name "
            "(--set name=...), or use --force to start over"
        )


def _key_of_checkpoint(run: Run) -> str | None:
    if run.mirror is not None:
        return read_manifest(run.place / "distill").get("key")
    train_state = latest_train_state(run.distill / CHECKPOINTS)
    return None if train_state is None else train_state.key


def _fit(recipe: Recipe, run: Run, key: str) -> dict[str, Any]:
    workers = recipe.train.workers
    storage = run.place / "ray"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "key": key},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count if workers.min_count is None else (workers.min_count, workers.count),
            use_gpu=workers.gpu,
            placement_strategy=workers.placement,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=f"{recipe.name}-{uuid4().hex[:8]}",
            storage_path=storage.path,
            storage_filesystem=storage.file_system,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[NoRetries()],
        ),
    )
    try:
        with _progress(run), mirrored(run), keyboard_interrupt():
            summary = trainer.fit().return_value
        assert isinstance(summary, dict)
        return cast(dict[str, Any], summary)
    except WorkerGroupError as error:
        if not _has_died(error):
            raise
        raise AskdError(
            f"training workers have died {workers.max_failures + 1} times (train.workers.max_failures = "
            f"{workers.max_failures}), often because memory ran out: run the same command again, it resumes from the "
            "last checkpoint"
        ) from error
    finally:
        storage.delete_folder()


def _has_died(error: WorkerGroupError) -> bool:
    """Whether a worker's process has died; any other error is a bug in the program."""
    failures = error.worker_failures.values()
    return any(isinstance(getattr(failure, "health_check_failure", failure), RayActorError) for failure in failures)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run the loop; returns its summary."""
    with user_error():
        recipe = Recipe.model_validate(config["recipe"])
        context = RayTrainContext(recipe.train.workers.gpu)
        return build_loop(recipe, context, Run(recipe).distill, config["key"]).run()


class NoRetries(UserCallback):
    """Ends the run, with all workers, when a worker raises an error that only the user can fix.

    Ray Train would retry, as it does when a worker dies, and the other workers may be waiting for the failed one.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise an :class:`AskdError` of a worker, if there is one, in the controller."""
        for error in worker_exceptions.values():
            if isinstance(error, AskdError):
                raise ControllerError(error)


class _progress:  # noqa: N801  # a context manager, used like a function
    """Shows the metrics that rank 0 writes while the driver waits for the workers."""

    def __init__(self, run: Run):
        self._run, self._stop = run, threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        metrics, scored, stopped = follow(self._run), None, False
        with bar("distill", None, "step") as progress:
            while not stopped:
                stopped = self._stop.wait(0.5)
                try:
                    lines = metrics.new()
                except AskdError:  # the store does not answer: the training itself finds out whether it matters
                    continue
                scored = next((line for line in reversed(lines) if "dev_wer" in line), scored)
                if lines:
                    _update(progress, lines[-1], scored)


def _update(progress: Bar, last: StepMetrics, scored: StepMetrics | None) -> None:
    lr = max(value for name, value in last.items() if name.startswith("lr/"))
    note = f"loss {last['loss']:.3f}  a {last['a']:.2f}  b {last['b']:.2f}  lr {lr:.1e}"
    if scored is not None:
        note += f"  dev WER {percent(scored['dev_wer'])} %  {scored['utterances_per_s']:.1f} utt/s"
    progress.update(last["step"], note, total=round(last["step"] / last["progress"]))
