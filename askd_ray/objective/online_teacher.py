"""An online teacher: it runs beside the student, for runs without cached soft labels."""

import torch
from torch.nn import functional

from askd_ray.config.schema import Recipe
from askd_ray.config.states import HiddenStatesLoss
from askd_ray.models.student import DecoderOutput, EncoderOutput, StudentModel
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.tensors import TensorBatch


class OnlineTeacher:
    """The frozen teacher. Its input is the clean clip in a padded window, as in the stage `label`.

    With ``shares_encoder`` (see :func:`encoders_agree`) it uses the student's encoder states instead of its own.
    """

    def __init__(self, model: WindowedWhisper, shares_encoder: bool):
        self.model = model.eval().requires_grad_(False)
        self.shares_encoder = shares_encoder

    @property
    def n_mels(self) -> int:
        """The number of mel channels of the clean windows that it needs; 0 if it needs none."""
        return 0 if self.shares_encoder else self.model.n_mels

    @torch.no_grad()
    def __call__(self, batch: TensorBatch, student: EncoderOutput) -> DecoderOutput:
        """Return the teacher's hidden states at every position; ``student`` is the student's encoder output."""
        encoded = EncoderOutput(student.states.detach()) if self.shares_encoder else None
        return self.model(batch.teacher_log_mel, batch.decoder_ids, encoded)


def encoders_agree(recipe: Recipe, student: StudentModel, teacher: WindowedWhisper) -> bool:
    """Whether both encoders compute the same states throughout the run, so that only one of them has to run.

    This requires equal weights (compared tensor by tensor) that never change, and equal input: every window padded and
    no augmentation.
    """
    same_input = recipe.window.padded_share == 1.0 and recipe.augment.is_off
    frozen = recipe.train.optimizer.frozen_until.encoder == 1.0
    stays = frozen and all(step.encoder_layers is None for step in recipe.student.shrink)
    if not (stays and same_input and recipe.objective.hidden_states.kind == "none"):
        return False
    if not isinstance(student, WindowedWhisper):
        return False
    student_weights, teacher_weights = (model.whisper.model.encoder.state_dict() for model in (student, teacher))
    if student_weights.keys() != teacher_weights.keys():
        return False
    return all(torch.equal(weight, teacher_weights[name]) for name, weight in student_weights.items())


def hidden_state_loss(
    settings: HiddenStatesLoss, student: EncoderOutput, teacher: EncoderOutput, lengths: torch.Tensor
) -> torch.Tensor:
    """Return the loss between the tapped encoder states, summed over target tokens like every other term.

    It is the mean squared error, or 1 - cosine similarity, averaged over layers and over the student's frames, times
    ``lengths`` (batch,) of each utterance. The teacher's window is longer; both windows begin at the clip's start, so
    the teacher's first frames match the student's.
    """
    per_layer: list[torch.Tensor] = []
    for student_states, teacher_states in zip(student.tapped, teacher.tapped, strict=True):
        teacher_states = teacher_states[:, : student_states.shape[1]].float()
        if settings.kind == "mse":
            per_frame = functional.mse_loss(student_states.float(), teacher_states, reduction="none").mean(dim=-1)
        else:
            per_frame = 1.0 - functional.cosine_similarity(student_states.float(), teacher_states, dim=-1)
        per_layer.append(per_frame.mean(dim=1))
    return (torch.stack(per_layer).mean(dim=0) * lengths).sum()
