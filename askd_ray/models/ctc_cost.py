"""Costs of a CTC student: parameters, and multiply-adds for a window."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from askd_ray.models.ctc import CtcModel, load_head
from askd_ray.models.load import load_config
from askd_ray.models.student import CostItem


def ctc_parts(folder: Path, n_frames: int) -> list[CostItem]:
    """Return encoder and head of a student's folder with their costs for a window of ``n_frames`` log-mel frames.

    Counted as :func:`askd_ray.models.cost.parts` does. Raises :class:`AskdError` when files are missing or damaged.
    """
    head, config = load_head(folder).to("meta"), load_config(str(folder))
    with torch.device("meta"), torch.no_grad():
        model = CtcModel(WhisperEncoder(config), head)
        log_mel, states = torch.empty(1, config.num_mel_bins, n_frames), torch.empty(1, n_frames // 2, config.d_model)
        with FlopCounterMode(display=False) as whole:
            model(log_mel)
        with FlopCounterMode(display=False) as of_head:
            nn.functional.linear(head(states), head.projection)
    in_head = of_head.get_total_flops() // 2  # a multiply-add is two operations
    in_encoder = whole.get_total_flops() // 2 - in_head
    params = [sum(parameter.numel() for parameter in module.parameters()) for module in (model.encoder, head)]
    return [CostItem("encoder", params[0], in_encoder), CostItem("CTC head", params[1], in_head)]
