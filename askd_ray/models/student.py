"""What the training knows of a student: a network, and its kind, which builds, saves, loads, shrinks and decodes it.

A new kind of student implements both, as :mod:`askd_ray.models.whisper_student` does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class EncoderOutput:
    """Encoder states ``(batch, n_frames / 2, d_model)``: ``states`` after the last layer, ``tapped`` after others.

    ``inside`` (batch, n_frames / 2) bool marks the positions in each row's window; None: all are. States at the other
    positions are padding: nothing may depend on them. ``key_mask`` (batch, 1, 1, n_frames / 2) is added to attention
    scores: 0 inside, -inf elsewhere; None: nothing is hidden. What a compressor gives the decoder has fewer positions.
    """

    states: torch.Tensor
    tapped: tuple[torch.Tensor, ...] = ()
    inside: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None

    @property
    def positions_inside(self) -> torch.Tensor:
        """Which positions are in each row's window ``(batch, n_frames / 2)`` bool."""
        return self.states.new_ones(self.states.shape[:2], dtype=torch.bool) if self.inside is None else self.inside


@dataclass(frozen=True)
class CtcStates:
    """The hidden states of a CTC head ``(batch, n_positions, d_model)``, and those of intermediate encoder layers.

    ``n_positions`` (batch,) int64 are the positions of each row's window.
    """

    final: torch.Tensor
    intermediate: tuple[torch.Tensor, ...]
    n_positions: torch.Tensor


@dataclass(frozen=True)
class DecoderOutput:
    """The last hidden states ``(batch, length, d_model)``, one per token; the projection turns them into logits.

    A student without a decoder has the hidden states of its CTC head there, one per position; ``ctc`` has those of any
    student with such a head.

    ``tapped``: decoder states of some layers, of the same shape, by the teacher's layer that they are compared with (-1
    is the last); a student also returns them ``projected`` to the teacher's width.
    """

    hidden: torch.Tensor
    encoded: EncoderOutput
    tapped: Mapping[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    projected: Mapping[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    ctc: CtcStates | None = None


class StudentModel(nn.Module, ABC):
    """A student's network. It returns hidden states, not logits: the objective computes logits a few tokens at a time.

    Every parameter and buffer is part of a checkpoint. A self-teacher may be a deep copy of the student.
    """

    shrunk: int = 0
    """The number of the recipe's shrinkings behind it."""

    @property
    @abstractmethod
    def n_mels(self) -> int:
        """The number of mel channels of its windows."""

    @property
    @abstractmethod
    def projection(self) -> torch.Tensor:
        """The output projection ``(n_vocab, d_model)`` from hidden states to logits."""

    @property
    def ctc_projection(self) -> torch.Tensor:
        """The projection ``(n_classes, d_model)`` of the CTC head; only of a student that has one."""
        return self.projection

    @abstractmethod
    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, window_frames: torch.Tensor | None = None
    ) -> DecoderOutput:
        """Return the hidden states of windows ``(batch, n_mels, n_frames)`` at tokens ``(batch, length)``.

        ``window_frames`` (batch,) int64 are the lengths of shorter windows, after which the log-mel is 0: a row's
        states must be those of the row alone in its window. None: every window has ``n_frames``.
        """

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters that can be trained, by group: ``encoder``, ``decoder`` and ``embeddings``.

        The recipe gives each group its learning rate, and can freeze it. A group without parameters is empty.
        """

    def layers(self) -> list[nn.Module]:
        """Return the modules that FSDP gathers one at a time; it gathers all other parameters at once."""
        return []

    @property
    def n_params(self) -> int:
        """The number of parameters of the saved student."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(frozen=True)
class CostItem:
    """A part of a model: its parameters, and its multiply-adds for one clip."""

    name: str
    params: int
    multiply_adds: int


@dataclass(frozen=True)
class Cost:
    """The costs of a whole model: its parts in the trimmed window of a typical clip, and in the padded window."""

    name: str
    trimmed: list[CostItem]
    padded: list[CostItem]

    @property
    def params(self) -> int:
        """The parameters of all parts."""
        return sum(part.params for part in self.trimmed)

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """The multiply-adds of all parts, in the trimmed and in the padded window."""
        return sum(part.multiply_adds for part in self.trimmed), sum(part.multiply_adds for part in self.padded)


class StudentKind(Protocol):
    """What the training does with a recipe's students besides training them. ``student`` is one that it has built."""

    def build(self, n_shrunk: int) -> StudentModel:
        """Return the untrained student, on the CPU, with the layers that it has after ``n_shrunk`` shrinkings."""
        ...

    def empty_like(self, student: Any) -> StudentModel:
        """Return a student with the same tensors, on the CPU and uninitialised, that decodes like ``student``."""
        ...

    def shrink(self, student: Any) -> tuple[StudentModel, Callable[[str], Sequence[str]]]:
        """Return a student after its next shrinking, on the CPU.

        The function returns, for a parameter's name, the names of the parameters that it was made of.
        """
        ...

    def save(self, student: Any, folder: Path) -> None:
        """Write a student to a folder, atomically."""
        ...

    def load(self, folder: Path, n_shrunk: int) -> StudentModel:
        """Return the student that :meth:`save` wrote, on the CPU; it has ``n_shrunk`` shrinkings behind it."""
        ...

    def transcribe(self, student: Any, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return the transcripts of windows ``(batch, n_mels, n_frames)`` in one language, for dev scores.

        On a GPU both are in float16: ``student`` is then a copy of a student that was built.
        """
        ...

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher, of the initial student, and of the student after each shrinking."""
        ...
