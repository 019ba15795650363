"""The readers of the encoder, as the objective sees them: where each target token is read, and the loss of its task.

Every reader gives one hidden state for each target token, and a projection to logits. The objective does the rest in
the same way for all: cross-entropy (or the reader's task loss), the teacher's and the self-teacher's divergences.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from askd_ray.config.objective import Objective
from askd_ray.models.student import CtcStates, DecoderOutput, StudentModel
from askd_ray.objective.ctc import CtcTargets, ctc_log_probs, ctc_token_losses, token_positions
from askd_ray.objective.references import Dense, Reference, TopK, UnitLabels
from askd_ray.objective.tensors import TensorBatch
from askd_ray.text.units import Segmenter


@dataclass(frozen=True)
class Reading:
    """What a reader reads in a batch; arrays have one entry for each target token ``(n_tokens,)``.

    ``positions``: where, counted in the reader's flattened ``(batch * length)``. ``targets``: the classes to predict,
    in the reader's vocabulary. ``task_loss``: the loss of its task, in nats; None: the cross-entropy of ``targets``.
    ``comparable``: whether a teacher's distribution can be compared there; None: everywhere. ``weight``: of its loss.
    """

    select: Callable[[StudentModel, DecoderOutput], tuple[torch.Tensor, torch.Tensor]]
    """Returns the reader's hidden states ``(batch, length, d_model)`` and projection, of any copy of the student."""
    positions: torch.Tensor
    targets: torch.Tensor
    weight: float = 1.0
    task_loss: torch.Tensor | None = None
    comparable: torch.Tensor | None = None
    first_unit: torch.Tensor | None = None
    """The class of the first unit of each of Whisper's tokens; None: the classes are Whisper's tokens."""
    n_classes: int = 0
    self_reference: Dense | None = None
    """What teaches it in place of the self-teacher."""
    is_intermediate: bool = False

    def rows(self, model: StudentModel, output: DecoderOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states at the target tokens ``(n_tokens, d_model)``, and the projection."""
        hidden, projection = self.select(model, output)
        return hidden.flatten(0, 1).index_select(0, self.positions), projection

    def teacher(self, reference: Reference | None) -> Reference | None:
        """Return the teacher in the reader's classes."""
        if self.first_unit is None or reference is None:
            return reference
        assert isinstance(reference, TopK), "a CTC head learns from cached soft labels"
        return UnitLabels(reference, self.first_unit, self.n_classes)


class Reader:
    """Reads the hidden states of a decoder or LLM: one for each token, at the token before it."""

    def readings(self, batch: TensorBatch, student: StudentModel, output: DecoderOutput) -> list[Reading]:
        """Return what is read in a batch; the first reading is the one that metrics describe."""
        return [Reading(_of_decoder, batch.target_positions, batch.targets)]


DECODER = Reader()
"""The reader of a student without a CTC head."""


@dataclass(frozen=True)
class CtcReader(Reader):
    """Reads the hidden states of a CTC head, and beside them those of a decoder if the student is ``hybrid``."""

    settings: Objective
    segmenter: Segmenter
    hybrid: bool

    @cached_property
    def _first_unit(self) -> torch.Tensor:
        return torch.tensor(self.segmenter.first)

    def readings(self, batch: TensorBatch, student: StudentModel, output: DecoderOutput) -> list[Reading]:
        """Return the decoder's reading of a hybrid student, that of the head, and those of intermediate layers."""
        states, first_unit = _states(output), self._first_unit.to(batch.targets.device)
        targets = CtcTargets.of(batch, self.segmenter)
        log_probs = ctc_log_probs(states.final, student.ctc_projection)
        positions, comparable = token_positions(log_probs, states.n_positions, targets, batch)
        final = Reading(
            lambda model, out: (_states(out).final, model.ctc_projection),
            positions,
            first_unit[batch.targets],
            weight=self.settings.ctc_weight if self.hybrid else 1.0,
            task_loss=ctc_token_losses(log_probs, states.n_positions, targets, batch),
            comparable=comparable,
            first_unit=first_unit,
            n_classes=len(student.ctc_projection),
        )
        others = super().readings(batch, student, output) if self.hybrid else []
        return [*others, final, *self._intermediate(final, batch, targets, student, output)]

    def _intermediate(
        self, final: Reading, batch: TensorBatch, targets: CtcTargets, student: StudentModel, output: DecoderOutput
    ) -> list[Reading]:
        """Return the readings of intermediate layers, at the positions of the last layer."""
        settings, states = self.settings.intermediate, _states(output)
        if settings.kind == "none":
            return []
        self_reference = None
        if settings.self_kd:
            hidden, projection = final.rows(student, output)
            self_reference = Dense(hidden.detach(), projection.detach())
        weight = final.weight * settings.weight / len(settings.layers)
        readings = list[Reading]()
        for number, hidden in enumerate(states.intermediate):
            log_probs = ctc_log_probs(hidden, student.ctc_projection)
            task_loss = ctc_token_losses(log_probs, states.n_positions, targets, batch)
            readings.append(
                replace(
                    final,
                    select=_of_intermediate(number),
                    weight=weight,
                    task_loss=task_loss,
                    self_reference=self_reference,
                    is_intermediate=True,
                )
            )
        return readings


def _of_decoder(model: StudentModel, output: DecoderOutput) -> tuple[torch.Tensor, torch.Tensor]:
    return output.hidden, model.projection


def _states(output: DecoderOutput) -> CtcStates:
    assert output.ctc is not None, "the student has no CTC head"
    return output.ctc


def _of_intermediate(number: int) -> Callable[[StudentModel, DecoderOutput], tuple[torch.Tensor, torch.Tensor]]:
    return lambda model, output: (_states(output).intermediate[number], model.ctc_projection)
