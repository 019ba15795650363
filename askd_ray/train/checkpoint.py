"""Checkpoints: one folder, written whole or not at all, safetensors and JSON only."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.amp.grad_scaler import GradScaler

from askd_ray.data.plan import DataCursor
from askd_ray.distill.self_teacher import Facts, SelfTeacher, StudentAt, Tensors
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, read_json, remove, write_json
from askd_ray.models.windows import WindowedWhisper
from askd_ray.train.optim import Optimizer
from askd_ray.train.parallel import gather, share
from askd_ray.train.weight_ema import WeightEma

_STATE = "state.json"
_STUDENT, _OPTIMIZER = "student.safetensors", "optimizer.safetensors"
_OWN, _EMA = "self_teacher.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands, besides its tensors.

    No state of any random number generator: each draw is seeded with what it is for (seed, step, utterance).
    """

    key: str
    """Of the inputs: a checkpoint of another recipe is not taken up."""
    step: int = 0
    progress: float = 0.0
    """The share of the run that is done."""
    place: DataCursor = field(default_factory=DataCursor)
    """Where the next step's data begins; it does not depend on the number of workers."""
    shrunk: int = 0
    """How many of the recipe's shrinkings the student has gone through."""
    best_wer: float | None = None
    """The best one since the last shrinking, and the step after which it was reached."""
    best_step: int | None = None
    no_better: int = 0
    """How many evaluations there were since then."""
    gap: dict[str, Any] = field(default_factory=dict[str, Any])
    """The running losses of the ``gap`` schedule (:meth:`~askd_ray.distill.schedules.Gap.state`)."""
    own: Facts = field(default_factory=dict[str, Any])
    """What the self-teacher keeps besides its tensors."""
    scaler: dict[str, Any] = field(default_factory=dict[str, Any])
    """The state of the float16 gradient scaler; empty where there is none."""
    ema_steps: int = 0
    """How many steps are in the average of the weights."""


@dataclass(frozen=True)
class TrainObjects:
    """What a checkpoint holds in tensors."""

    student: WindowedWhisper
    optimizer: Optimizer
    own: SelfTeacher
    ema: WeightEma
    scaler: GradScaler


def save_checkpoint(folder: Path, position: TrainState, state: TrainObjects, own: Tensors, writes: bool = True) -> None:
    """Write ``folder/step-00000012`` and remove the checkpoints before it. ``own`` are the self-teacher's tensors.

    All ranks call it together, and one ``writes``: the others give their shares of what is sharded.
    Raises :class:`AskdError` when it cannot be written; the one before it is then still there.
    """
    if not writes:
        for _, tensors in _files(state, own):
            gather(tensors, keep=False)
        return
    path = folder / f"step-{position.step:08d}"
    _, ema_steps = state.ema.state()
    position = dataclasses.replace(position, scaler=state.scaler.state_dict(), ema_steps=ema_steps)
    try:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for name, tensors in _files(state, own):
                save_file(gather(tensors, keep=True), temporary / name)
            write_json(temporary / _STATE, dataclasses.asdict(position))
    except (OSError, SafetensorError) as error:
        raise AskdError(
            f"cannot write checkpoint {path} ({_short(error)}); the one before it is whole: once there is room, the "
            "same command goes on from it"
        ) from None
    for other in folder.iterdir():  # the ones before, and what a process that was killed has left half written
        if other != path:
            remove(other)


def latest_position(folder: Path) -> TrainState | None:
    """Return where the newest whole checkpoint stands, or None when there is none."""
    found = _checkpoints(folder)
    return _position(found[-1]) if found else None


def load_checkpoint(folder: Path, state: TrainObjects, student_at: StudentAt) -> None:
    """Put the newest checkpoint, if there is one, into a state.

    The student has the layers that :func:`latest_position` speaks of.
    Raises :class:`AskdError` when it is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return
    path, position = found[-1], _position(found[-1])
    try:
        now, saved = state.student.state_dict(), load_file(path / _STUDENT)
        state.student.load_state_dict({name: share(saved[name], now[name]) for name in saved}, strict=True)
        _restore_optimizer(state.optimizer, load_file(path / _OPTIMIZER))
        state.own.restore(_if_there(path / _OWN), position.own, student_at)
        mean = {name: share(value, now[name]) for name, value in _if_there(path / _EMA).items()}
        state.ema.restore(mean, position.ema_steps, next(state.student.parameters()).device)
        state.scaler.load_state_dict(position.scaler)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise AskdError(f"checkpoint {path} is damaged ({_short(error)}): delete it") from None


def _if_there(path: Path) -> Tensors:
    return load_file(path) if path.is_file() else {}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if (p / _STATE).is_file())


def _position(path: Path) -> TrainState:
    values = read_json(path / _STATE)
    place = DataCursor(**values.pop("place"))
    return TrainState(**values, place=place)


def _files(state: TrainObjects, own: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Yield the tensors of each file, in the same order on every rank."""
    mean, _ = state.ema.state()
    yield _STUDENT, state.student.state_dict()
    yield _OPTIMIZER, _optimizer_tensors(state.optimizer)
    yield from ((name, tensors) for name, tensors in ((_OWN, own), (_EMA, mean)) if tensors)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = share(value, parameters[int(number)])
    # The groups (rates, decay) are the recipe's, not the checkpoint's.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
