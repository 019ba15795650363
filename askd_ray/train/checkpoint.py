"""Checkpoints: one folder each, written atomically, safetensors and JSON only."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.amp.grad_scaler import GradScaler

from askd_ray.data.sampler import DataCursor
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, read_json, remove, write_json
from askd_ray.models.student import StudentModel
from askd_ray.objective.self_teacher import Facts, SelfTeacher, StudentBuilder, Tensors
from askd_ray.train.optim import Optimizer
from askd_ray.train.parallel import gather_on_cpu, local_part
from askd_ray.train.weight_ema import WeightEma

FORMAT = 4
"""Version of a checkpoint's layout; 3 had other groups of data, and PS-KD's labels as tensors."""

_STATE = "state.json"
_STUDENT, _OPTIMIZER = "student.safetensors", "optimizer.safetensors"
_SELF_TEACHER, _EMA = "self_teacher.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class TrainState:
    """The state of a run besides its tensors. A checkpoint stores it as JSON under these field names.

    It holds no random number generator's state: the seed of each draw comes from its purpose (seed, step, utterance).
    """

    key: str
    """The key of the inputs: a run never resumes from a checkpoint of another recipe."""
    step: int = 0
    progress: float = 0.0
    """The completed share of the run."""
    cursor: DataCursor = field(default_factory=DataCursor)
    """Where the next step's data begins. It does not depend on the number of workers."""
    shrunk: int = 0
    """The number of shrinkings that the student has gone through."""
    best_score: float | None = None
    """The lowest dev score since the last shrinking."""
    best_wer: float | None = None
    """The dev WER of the student with ``best_score``."""
    best_step: int | None = None
    """The step after which the student reached ``best_score``."""
    no_better: int = 0
    """The number of evaluations since ``best_step``."""
    gap: dict[str, Any] = field(default_factory=dict[str, Any])
    """The running losses of the ``gap`` schedule (:meth:`~askd_ray.objective.schedules.Gap.state`)."""
    self_teacher: Facts = field(default_factory=dict[str, Any])
    """The self-teacher's state besides its tensors."""
    scaler: dict[str, Any] = field(default_factory=dict[str, Any])
    """The state of the float16 gradient scaler; empty without one."""
    ema_steps: int = 0
    """The number of steps in the moving average of the weights."""


@dataclass(frozen=True)
class TrainObjects:
    """The objects of a run whose tensors a checkpoint holds."""

    student: StudentModel
    optimizer: Optimizer
    self_teacher: SelfTeacher
    ema: WeightEma
    scaler: GradScaler


def save_checkpoint(
    folder: Path, train_state: TrainState, objects: TrainObjects, self_teacher: Tensors, writes: bool = True
) -> None:
    """Write ``folder/step-00000012`` and remove earlier checkpoints. ``self_teacher``: the self-teacher's tensors.

    All ranks call it together, and one rank ``writes``: the others send their parts of sharded tensors.
    Raises :class:`AskdError` when the checkpoint cannot be written; the previous checkpoint then stays.
    """
    if not writes:
        for _, tensors in _tensor_files(objects, self_teacher):
            gather_on_cpu(tensors, keep=False)
        return
    path = folder / f"step-{train_state.step:08d}"
    _, ema_steps = objects.ema.state()
    train_state = dataclasses.replace(train_state, scaler=objects.scaler.state_dict(), ema_steps=ema_steps)
    try:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for name, tensors in _tensor_files(objects, self_teacher):
                save_file(gather_on_cpu(tensors, keep=True), temporary / name)
            write_json(temporary / _STATE, {"format": FORMAT, **dataclasses.asdict(train_state)})
    except (OSError, SafetensorError) as error:
        raise AskdError(
            f"cannot write checkpoint {path} ({_one_line(error)}); the previous checkpoint is intact: free disk space "
            "and run the same command again, it resumes from there"
        ) from None
    for other in folder.iterdir():  # earlier checkpoints, and half-written files of a killed process
        if other != path:
            remove(other)


def latest_train_state(folder: Path) -> TrainState | None:
    """Return the state of the newest complete checkpoint, or None when there is none.

    Raises :class:`AskdError` when it has another format.
    """
    folders = _checkpoints(folder)
    return _read_train_state(folders[-1]) if folders else None


def load_checkpoint(folder: Path, objects: TrainObjects, student_builder: StudentBuilder) -> None:
    """Load the newest checkpoint, if there is one, into the objects of a run.

    The student must have as many shrinkings behind it as :func:`latest_train_state` says.
    Raises :class:`AskdError` when the checkpoint is damaged.
    """
    folders = _checkpoints(folder)
    if not folders:
        return
    path, train_state = folders[-1], _read_train_state(folders[-1])
    try:
        now, saved = objects.student.state_dict(), load_file(path / _STUDENT)
        objects.student.load_state_dict({name: local_part(saved[name], now[name]) for name in saved}, strict=True)
        _restore_optimizer(objects.optimizer, load_file(path / _OPTIMIZER))
        objects.self_teacher.restore(_load_if_exists(path / _SELF_TEACHER), train_state.self_teacher, student_builder)
        mean = {name: local_part(value, now[name]) for name, value in _load_if_exists(path / _EMA).items()}
        objects.ema.restore(mean, train_state.ema_steps, next(objects.student.parameters()).device)
        objects.scaler.load_state_dict(train_state.scaler)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise AskdError(f"checkpoint {path} is damaged ({_one_line(error)}): delete it") from None


def _load_if_exists(path: Path) -> Tensors:
    return load_file(path) if path.is_file() else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if (p / _STATE).is_file())


def _read_train_state(path: Path) -> TrainState:
    values = read_json(path / _STATE)
    version = values.pop("format", 1)
    if version != FORMAT:
        raise AskdError(
            f"checkpoint {path} has format {version}, and this version of askd resumes from format {FORMAT}: "
            "--force starts the run again"
        )
    cursor = DataCursor(**values.pop("cursor"))
    return TrainState(**values, cursor=cursor)


def _tensor_files(objects: TrainObjects, self_teacher: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Yield file names with their tensors, in the same order on every rank."""
    mean, _ = objects.ema.state()
    yield _STUDENT, objects.student.state_dict()
    yield _OPTIMIZER, _optimizer_tensors(objects.optimizer)
    yield from ((name, tensors) for name, tensors in ((_SELF_TEACHER, self_teacher), (_EMA, mean)) if tensors)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()
    }


# Not torch's set_optimizer_state_dict: it refuses parameters that were frozen until now and have no state.
def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = local_part(value, parameters[int(number)])
    # The learning rates and the weight decay come from the recipe, not from the checkpoint.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
