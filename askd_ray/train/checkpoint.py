"""Checkpoints: one folder, written whole or not at all, safetensors and JSON only."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from askd_ray.distill.self_teacher import Facts, SelfTeacher, StudentAt, Tensors
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, read_json, remove, write_json
from askd_ray.models.windows import WindowedWhisper

_STATE = "state.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands, besides its tensors."""

    key: str
    """Of the inputs: a checkpoint of another recipe is not taken up."""
    step: int = 0
    shrunk: int = 0
    """How many of the recipe's shrinkings the student has gone through."""
    best_wer: float | None = None
    """The best one since the last shrinking, and the step after which it was reached."""
    best_step: int | None = None
    gap: dict[str, Any] = field(default_factory=dict[str, Any])
    """The running losses of the ``gap`` schedule (:meth:`~askd_ray.distill.schedules.Gap.state`)."""
    own: Facts = field(default_factory=dict[str, Any])
    """What the self-teacher keeps besides its tensors."""


def save_checkpoint(
    folder: Path, position: Position, student: WindowedWhisper, optimizer: torch.optim.Optimizer, own: Tensors
) -> Path:
    """Write ``folder/step-00000012`` and remove the checkpoints before it. ``own`` is the self-teacher's.

    Returns the path.
    """
    path = folder / f"step-{position.step:08d}"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        save_file(_plain(student.state_dict()), temporary / "student.safetensors")
        save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
        if own:
            save_file(_plain(own), temporary / "self_teacher.safetensors")
        write_json(temporary / _STATE, dataclasses.asdict(position))
    for older in _checkpoints(folder):
        if older != path:
            remove(older)
    return path


def latest_position(folder: Path) -> Position | None:
    """Return where the newest whole checkpoint stands, or None when there is none."""
    found = _checkpoints(folder)
    return _position(found[-1]) if found else None


def load_checkpoint(
    folder: Path,
    student: WindowedWhisper,
    optimizer: torch.optim.Optimizer,
    own: SelfTeacher,
    student_at: StudentAt,
) -> None:
    """Put the newest checkpoint, if there is one, into student, optimizer and self-teacher.

    The student has the layers that :func:`latest_position` speaks of.
    Raises :class:`AskdError` when it is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return
    path, position = found[-1], _position(found[-1])
    try:
        student.load_state_dict(load_file(path / "student.safetensors"), strict=True)
        _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
        kept = path / "self_teacher.safetensors"
        own.restore(load_file(kept) if kept.is_file() else {}, position.own, student_at)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise AskdError(f"checkpoint {path} is damaged ({' '.join(str(error).split())[:120]}): delete it") from None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if (p / _STATE).is_file())


def _position(path: Path) -> Position:
    return Position(**read_json(path / _STATE))


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for number, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    # The groups (rates, decay) are the recipe's, not the checkpoint's.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
