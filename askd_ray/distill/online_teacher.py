"""A teacher that runs beside the student, for runs without cached soft labels."""

import torch
from torch.nn import functional

from askd_ray.config.objective import HiddenStates
from askd_ray.config.schema import Recipe
from askd_ray.distill.tensors import TensorBatch
from askd_ray.models.windows import DecoderOutput, EncoderOutput, WindowedWhisper


class OnlineTeacher:
    """The frozen teacher. It hears the clean clip in its padded window, as it does when it labels.

    With ``shares_encoder`` (see :func:`encoders_agree`) it takes the student's encoder states instead of its own.
    """

    def __init__(self, model: WindowedWhisper, shares_encoder: bool):
        self.model = model.eval().requires_grad_(False)
        self.shares_encoder = shares_encoder

    @torch.no_grad()
    def __call__(self, batch: TensorBatch, student: EncoderOutput) -> DecoderOutput:
        """Return the teacher's hidden states at every position of a batch."""
        encoded = EncoderOutput(student.states.detach()) if self.shares_encoder else None
        return self.model(batch.teacher_log_mel, batch.decoder_ids, encoded)


def encoders_agree(recipe: Recipe, student: WindowedWhisper, teacher: WindowedWhisper) -> bool:
    """Whether both encoders give the same states all through the run, so that one of them need not run.

    That takes the same weights (compared one by one: equal widths say nothing), which stay the same, and the same
    input: every window padded and nothing augmented.
    """
    same_input = recipe.window.padded_share == 1.0 and recipe.augment.is_off
    frozen = recipe.train.frozen_until.encoder == 1.0
    stays = frozen and all(step.encoder_layers is None for step in recipe.student.shrink)
    if not (stays and same_input and recipe.objective.hidden_states.kind == "none"):
        return False
    mine, its = (w.whisper.model.encoder.state_dict() for w in (student, teacher))
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def hidden_state_loss(
    settings: HiddenStates, student: EncoderOutput, teacher: EncoderOutput, lengths: torch.Tensor
) -> torch.Tensor:
    """Return the loss between the tapped encoder states, summed over target tokens like every other term.

    Mean squared error, or 1 - cosine similarity, as the mean over layers and over the student's frames (the teacher's
    window is the longer one: both count positions from the clip's start), times each utterance's ``lengths`` (batch,).
    """
    per_layer: list[torch.Tensor] = []
    for mine, its in zip(student.tapped, teacher.tapped, strict=True):
        its = its[:, : mine.shape[1]].float()
        if settings.kind == "mse":
            per_frame = functional.mse_loss(mine.float(), its, reduction="none").mean(dim=-1)
        else:
            per_frame = 1.0 - functional.cosine_similarity(mine.float(), its, dim=-1)
        per_layer.append(per_frame.mean(dim=1))
    return (torch.stack(per_layer).mean(dim=0) * lengths).sum()
