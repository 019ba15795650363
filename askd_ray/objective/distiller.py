"""One batch through student and teachers: forward passes, reference distributions, and the loss sums."""

from collections.abc import Callable

import torch
from torch import nn

from askd_ray.config.objective import Objective
from askd_ray.models.student import DecoderOutput, StudentModel
from askd_ray.objective.instance_weights import instance_weights
from askd_ray.objective.objective import PARTS, TokenBatch, objective_sums
from askd_ray.objective.online_teacher import OnlineTeacher, hidden_state_loss
from askd_ray.objective.references import Dense, Reference, TopK
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import SelfTeacher
from askd_ray.objective.tensors import TensorBatch

NAMES: tuple[str, ...] = (*PARTS, "hidden")
"""The sums of :meth:`Distiller.sums`: those of the objective, and the loss between encoder states."""


class Distiller:
    """The objective with its teachers. ``threshold`` is AdaKD's t, in nats a token."""

    def __init__(self, settings: Objective, self_teacher: SelfTeacher, online: OnlineTeacher | None, threshold: float):
        self.settings, self.self_teacher, self.online, self.threshold = settings, self_teacher, online, threshold

    def sums(
        self, network: nn.Module, student: StudentModel, batch: TensorBatch, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, which carries the gradient, and the sums of :data:`NAMES` over target tokens, float64.

        ``network`` is ``student`` or its wrapper that averages gradients over ranks.
        """
        decoded: DecoderOutput = network(batch.log_mel, batch.decoder_ids, batch.window_frames)
        teacher = self._teacher(batch, decoded, weights)
        tokens = TokenBatch(
            batch.targets[batch.valid],
            batch.per_token(
                instance_weights(self.settings.instance_weights, batch.teacher_loss, self.threshold, weights.k)
            ),
            self._teacher_reference(batch, teacher, weights),
            self.self_teacher.reference(batch) if weights.self_weight > 0.0 else None,
        )
        loss, sums = objective_sums(
            self.settings, weights, tokens, (decoded.hidden[batch.valid], student.projection), self._observer(batch)
        )
        hidden = torch.zeros_like(loss)
        if teacher is not None and self.settings.hidden_states.kind != "none":
            hidden = hidden_state_loss(self.settings.hidden_states, decoded.encoded, teacher.encoded, batch.lengths)
            loss = loss + self.settings.hidden_states.weight * hidden
            sums[0] = loss.detach()
        return loss, torch.cat([sums, hidden.detach().double()[None]])

    def _teacher(self, batch: TensorBatch, decoded: DecoderOutput, weights: Weights) -> DecoderOutput | None:
        is_needed = weights.teacher_weight > 0.0 or self.settings.hidden_states.kind != "none"
        return self.online(batch, decoded.encoded) if self.online is not None and is_needed else None

    def _teacher_reference(
        self, batch: TensorBatch, teacher: DecoderOutput | None, weights: Weights
    ) -> Reference | None:
        if weights.teacher_weight == 0.0:
            return None
        if self.online is None:
            cached = (batch.top_ids, batch.top_log_probs, batch.rest_log_prob, batch.token_loss)
            return TopK(*(array[batch.valid] for array in cached))
        assert teacher is not None
        return Dense(teacher.hidden[batch.valid], self.online.model.projection)

    def _observer(self, batch: TensorBatch) -> Callable[[slice, torch.Tensor], None]:
        return lambda rows, log_q: self.self_teacher.observe(batch, rows, log_q)
