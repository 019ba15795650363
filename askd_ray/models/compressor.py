"""Compressors: of the encoder's 50 states a second they make fewer, which the decoder reads.

A window of ``n`` positions gets ``ceil(n / stride)`` states. A row's states do not depend on what follows its window.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import WhisperConfig

from askd_ray.config.student import CompressorSettings
from askd_ray.errors import AskdError
from askd_ray.models.hfq_former import HfqFormer
from askd_ray.models.load import COMPRESSOR_FILE
from askd_ray.models.state_compressor import StateCompressor, States, ceil_div, identity_map, zero_outside


class PoolingCompressor(StateCompressor):
    """The mean of each ``stride`` neighbouring states of a window, and a linear map that begins as the identity.

    It has d^2 + d parameters.
    """

    def __init__(self, width: int, stride: int):
        super().__init__(stride)
        self.map = identity_map(width)

    def compress(self, encoded: States) -> torch.Tensor:
        """Return the mapped means."""
        n = encoded.values.shape[1]
        length = ceil_div(n, self.stride)
        padded = functional.pad(zero_outside(encoded.values, encoded.inside), (0, 0, 0, length * self.stride - n))
        sums = padded.unflatten(1, (length, self.stride)).sum(dim=2)
        n_positions = n if encoded.inside is None else encoded.inside.sum(dim=1, keepdim=True)
        left = n_positions - self.stride * torch.arange(length, device=sums.device)
        return self.map(sums / left.clamp(1, self.stride)[..., None])


def build_compressor(settings: CompressorSettings, config: WhisperConfig, scale: float = 1.0) -> StateCompressor:
    """Return an untrained compressor for the encoder of a Whisper; ``scale`` is the size of the encoder's states."""
    if settings.kind == "pooling":
        return PoolingCompressor(config.d_model, settings.stride)
    return HfqFormer(config.d_model, config.encoder_attention_heads, settings.stride, scale)


def save_compressor(compressor: StateCompressor, folder: Path) -> None:
    """Write a compressor into a folder that is not published yet."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compressor.state_dict().items()}
    save_file(tensors, folder / COMPRESSOR_FILE)


def load_compressor(folder: Path, settings: CompressorSettings, config: WhisperConfig) -> StateCompressor:
    """Return the compressor of a folder, on the CPU, in float32.

    Raises :class:`AskdError` when its file is missing, damaged, or of other settings.
    """
    file, compressor = folder / COMPRESSOR_FILE, build_compressor(settings, config)
    try:
        compressor.load_state_dict({name: t.float() for name, t in load_file(file).items()}, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"{file} cannot be loaded as the compressor {settings.kind}: {reason}") from None
    return compressor.eval()
