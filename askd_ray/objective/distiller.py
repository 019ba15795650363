"""One batch through student and teachers: forward passes, reference distributions, and the loss sums."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from askd_ray.config.objective import Objective
from askd_ray.config.states import DecoderStatesLoss
from askd_ray.models.student import DecoderOutput, StudentModel
from askd_ray.objective.decoder_states import states_distance
from askd_ray.objective.instance_weights import instance_weights
from askd_ray.objective.objective import OF_TEACHER, PARTS, TokenBatch, objective_sums
from askd_ray.objective.online_teacher import OnlineTeacher, hidden_state_loss
from askd_ray.objective.readers import DECODER, Reader, Reading
from askd_ray.objective.references import Dense, Reference, TopK
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import SelfTeacher
from askd_ray.objective.tensors import TensorBatch

NAMES: tuple[str, ...] = (*PARTS, "readers", "hidden", "states", "self_states")
"""The sums of :meth:`Distiller.sums`: those of the objective for the first reader, the weighted losses of the others,
the loss between encoder states, and the distances of decoder states from the teacher and from the self-teacher."""
OVER_TAUGHT: tuple[str, ...] = (*OF_TEACHER, "states")
"""Those that are sums over the ``taught`` tokens, which have a teacher."""


class Distiller:
    """The objective with its teachers. ``threshold`` is AdaKD's t, in nats a token.

    ``reader``: what reads the student's encoder. ``chunk_tokens``: the target tokens whose logits exist at the same
    time; None: as many as suit the device.
    """

    def __init__(
        self,
        settings: Objective,
        self_teacher: SelfTeacher,
        online: OnlineTeacher | None,
        threshold: float,
        reader: Reader = DECODER,
        chunk_tokens: int | None = None,
    ):
        self.settings, self.self_teacher, self.online, self.threshold = settings, self_teacher, online, threshold
        self.reader, self.chunk_tokens = reader, chunk_tokens

    def sums(
        self, network: nn.Module, student: StudentModel, batch: TensorBatch, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, which carries the gradient, and the sums of :data:`NAMES` over target tokens, float64.

        ``network`` is ``student`` or its wrapper that averages gradients over ranks.
        """
        output: DecoderOutput = network(batch.log_mel, batch.decoder_ids, batch.window_frames)
        teacher = self._teacher(batch, output, weights)
        readings = self.reader.readings(batch, student, output)
        teacher_reference = self._teacher_reference(batch, output, teacher, weights)
        all_tokens = self._token_batches(batch, readings, teacher_reference, weights)
        losses, all_sums = list[torch.Tensor](), list[torch.Tensor]()
        for number, (reading, tokens) in enumerate(zip(readings, all_tokens, strict=True)):
            observe = self._observer(batch) if number == 0 else _ignore
            of_student = reading.rows(student, output)
            loss, sums = objective_sums(self.settings, weights, tokens, of_student, observe, self.chunk_tokens)
            losses.append(loss if reading.weight == 1.0 else reading.weight * loss)
            all_sums.append(sums)
        loss, sums = losses[0], all_sums[0]
        others = sums.new_zeros(len(NAMES) - len(PARTS))
        if len(losses) > 1:
            loss = torch.stack(losses).sum()
            others[0] = torch.stack(losses[1:]).detach().sum()
        if teacher is not None and self.settings.hidden_states.kind != "none":
            hidden = hidden_state_loss(self.settings.hidden_states, output.encoded, teacher.encoded, batch.n_targets)
            loss = loss + self.settings.hidden_states.weight * hidden
            others[1] = hidden.detach()
        if self.settings.decoder_states.kind != "none":
            states, self_states = self._states_sums(self.settings.decoder_states, batch, output, all_tokens[0])
            of_states = weights.states_weight * states + weights.self_weight * self_states
            loss = loss + self.settings.decoder_states.scale * of_states
            others[2], others[3] = states.detach(), self_states.detach()
        sums[0] = loss.detach()
        return loss, torch.cat([sums, others])

    def _token_batches(
        self, batch: TensorBatch, readings: Sequence[Reading], teacher: Reference | None, weights: Weights
    ) -> list[TokenBatch]:
        """Return the target tokens of each reading, with its teachers."""
        instance_weights = self._instance_weights(batch, weights)
        self_references: Sequence[Reference | None] = [None] * len(readings)
        if weights.self_weight > 0.0:
            taught_by_it = [reading for reading in readings if not reading.is_intermediate]
            given = self.self_teacher.references(batch, taught_by_it)
            self_references = [*given, *(r.self_reference for r in readings if r.is_intermediate)]
        return [
            TokenBatch(
                reading.targets,
                batch.has_teacher,
                instance_weights,
                reading.teacher(teacher),
                self_reference,
                reading.task_loss,
                reading.comparable,
            )
            for reading, self_reference in zip(readings, self_references, strict=True)
        ]

    def _instance_weights(self, batch: TensorBatch, weights: Weights) -> torch.Tensor | None:
        settings = self.settings.instance_weights
        if settings.kind == "uniform":
            return None
        return batch.per_token(instance_weights(settings, batch.teacher_loss, self.threshold, weights.k))

    def _states_sums(
        self, settings: DecoderStatesLoss, batch: TensorBatch, decoded: DecoderOutput, tokens: TokenBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distances of decoder states from the teacher and from the self-teacher, summed over tokens."""
        student = batch.states_at_targets(decoded.projected)
        # Without a teacher in this step: 0 with a gradient, because ranks exchange one for every projection.
        states = torch.stack([0.0 * of_layer.float().sum() for of_layer in student.values()]).sum()
        self_states = torch.zeros_like(states)
        if tokens.teacher is not None and tokens.teacher.states:
            states = (tokens.has_teacher * states_distance(settings, student, tokens.teacher.states)).sum()
        if settings.self_teacher and tokens.self_teacher is not None:
            student = batch.states_at_targets(decoded.tapped)
            self_states = states_distance(settings, student, tokens.self_teacher.states).sum()
        return states, self_states

    def _teacher(self, batch: TensorBatch, decoded: DecoderOutput, weights: Weights) -> DecoderOutput | None:
        weighted = weights.teacher_weight > 0.0 or weights.states_weight > 0.0
        is_needed = weighted or self.settings.hidden_states.kind != "none"
        return self.online(batch, decoded.encoded) if self.online is not None and is_needed else None

    def _teacher_reference(
        self, batch: TensorBatch, student: DecoderOutput, teacher: DecoderOutput | None, weights: Weights
    ) -> Reference | None:
        if weights.teacher_weight == 0.0 and weights.states_weight == 0.0:
            return None
        layers = student.tapped if weights.states_weight > 0.0 else ()
        if self.online is None:
            states = {layer: batch.states[:, layer] for layer in layers}
            return TopK(batch.top_ids, batch.top_log_probs, batch.rest_log_prob, batch.token_loss, states)
        assert teacher is not None
        states = batch.states_at_targets({layer: teacher.tapped[layer] for layer in layers})
        return Dense(batch.at_targets(teacher.hidden), self.online.model.projection, states)

    def _observer(self, batch: TensorBatch) -> Callable[[slice, torch.Tensor], None]:
        return lambda rows, log_q: self.self_teacher.observe(batch, rows, log_q)


def _ignore(rows: slice, log_q: torch.Tensor) -> None:
    """Observe nothing."""
