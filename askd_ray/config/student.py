"""The recipe's ``student``: what it starts from, its layers, and what reads its encoder."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Section

Layers = tuple[int | tuple[int, ...], ...]
"""Indices of layers to keep, and lists of neighbouring layers to merge into one."""


class Shrinking(Section):
    """A removal of layers during the run. Layers are indices into the student at the start."""

    at: Annotated[float, Field(gt=0.0, lt=1.0)]
    """The progress of the run, between 0 and 1."""
    encoder_layers: Layers | None = None
    """The encoder layers that the student keeps; null keeps all."""
    decoder_layers: Layers | None = None
    """The decoder layers that the student keeps; null keeps all."""

    @model_validator(mode="after")
    def _check_layers(self) -> "Shrinking":
        if self.encoder_layers is None and self.decoder_layers is None:
            raise ValueError(f"the shrinking at {self.at:g} names neither encoder_layers nor decoder_layers")
        return self


class Student(Section):
    """The student and its layers.

    An entry is the index of a layer, or a list of neighbours to merge into one layer: ``[0, [1, 2], 3]`` turns four
    layers into three.
    """

    init: str | None = None
    """The model that it starts from; null: the teacher."""
    encoder_layers: Layers | None = None
    """The encoder layers that it keeps; null keeps all."""
    decoder_layers: Layers | None = None
    """The decoder layers that it keeps; null keeps all."""
    reader: Literal["whisper", "ctc", "hybrid"] = "whisper"
    """What reads the encoder: Whisper's decoder, a CTC head in its place, or both (docs/training.md)."""
    shrink: tuple[Shrinking, ...] = ()
    """Removals of more layers during the run."""

    @model_validator(mode="after")
    def _check_shrink_order(self) -> "Student":
        moments = [step.at for step in self.shrink]
        if any(later <= earlier for earlier, later in itertools.pairwise(moments)):
            raise ValueError(
                f"shrink is at {', '.join(f'{at:g}' for at in moments)}: each must be later than the one before"
            )
        return self
