"""One batch through student and teachers: forward passes, reference distributions, and the loss sums."""

from collections.abc import Callable

import torch
from torch import nn

from askd_ray.config.objective import Objective
from askd_ray.config.states import DecoderStatesLoss
from askd_ray.models.student import DecoderOutput, StudentModel
from askd_ray.objective.decoder_states import states_distance
from askd_ray.objective.instance_weights import instance_weights
from askd_ray.objective.objective import OF_TEACHER, PARTS, TokenBatch, objective_sums
from askd_ray.objective.online_teacher import OnlineTeacher, hidden_state_loss
from askd_ray.objective.references import Dense, Reference, TopK
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import SelfTeacher
from askd_ray.objective.tensors import TensorBatch

NAMES: tuple[str, ...] = (*PARTS, "hidden", "states", "self_states")
"""The sums of :meth:`Distiller.sums`: those of the objective, the loss between encoder states, and the distances of
decoder states from the teacher and from the self-teacher."""
OVER_TAUGHT: tuple[str, ...] = (*OF_TEACHER, "states")
"""Those that are sums over the ``taught`` tokens, which have a teacher."""


class Distiller:
    """The objective with its teachers. ``threshold`` is AdaKD's t, in nats a token.

    ``chunk_tokens``: the target tokens whose logits exist at the same time; None: as many as suit the device.
    """

    def __init__(
        self,
        settings: Objective,
        self_teacher: SelfTeacher,
        online: OnlineTeacher | None,
        threshold: float,
        chunk_tokens: int | None = None,
    ):
        self.settings, self.self_teacher, self.online, self.threshold = settings, self_teacher, online, threshold
        self.chunk_tokens = chunk_tokens

    def sums(
        self, network: nn.Module, student: StudentModel, batch: TensorBatch, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, which carries the gradient, and the sums of :data:`NAMES` over target tokens, float64.

        ``network`` is ``student`` or its wrapper that averages gradients over ranks.
        """
        decoded: DecoderOutput = network(batch.log_mel, batch.decoder_ids, batch.window_frames)
        teacher = self._teacher(batch, decoded, weights)
        tokens = TokenBatch(
            batch.targets,
            batch.per_token(batch.has_teacher),
            self._instance_weights(batch, weights),
            self._teacher_reference(batch, decoded, teacher, weights),
            self.self_teacher.reference(batch) if weights.self_weight > 0.0 else None,
        )
        loss, sums = objective_sums(
            self.settings,
            weights,
            tokens,
            (batch.at_targets(decoded.hidden), student.projection),
            self._observer(batch),
            self.chunk_tokens,
        )
        others = sums.new_zeros(len(NAMES) - len(PARTS))
        if teacher is not None and self.settings.hidden_states.kind != "none":
            hidden = hidden_state_loss(self.settings.hidden_states, decoded.encoded, teacher.encoded, batch.n_targets)
            loss = loss + self.settings.hidden_states.weight * hidden
            others[0] = hidden.detach()
        if self.settings.decoder_states.kind != "none":
            states, self_states = self._states_sums(self.settings.decoder_states, batch, decoded, tokens)
            of_states = weights.states_weight * states + weights.self_weight * self_states
            loss = loss + self.settings.decoder_states.scale * of_states
            others[1], others[2] = states.detach(), self_states.detach()
        sums[0] = loss.detach()
        return loss, torch.cat([sums, others])

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
