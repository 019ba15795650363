"""Writes a CTC student as an ONNX folder, which :class:`askd_ray.models.ctc_engine.CtcEngine` reads.

model.onnx       log_mel (batch, n_mels, n_frames) -> log_probs (batch, n_frames / 2, n_classes), float32
config.json      num_mel_bins, and the token of each class after the blank
tokenizer.json   Whisper's
"""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Literal

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.nn import functional

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.files import atomic_path, write_json
from askd_ray.models.ctc import CtcModel, load_ctc

ONNX_FILE = "model.onnx"
Quantization = Literal["float32", "int8"]
_OPSET = 17  # the first with LayerNormalization
_MIN_SCALE = 1e-6


class RowScaled(nn.Module):
    """A linear layer that divides each position of its input by its largest magnitude, and multiplies the output.

    The result is the same, but each position uses all 8 bits: after the activation of a feed-forward block, the largest
    magnitudes of positions differ several times.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the linear layer's output."""
        scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=_MIN_SCALE)
        return functional.linear(inputs / scale, self.linear.weight) * scale + self.linear.bias


def write_onnx(source: Path, target: Path, quantization: Quantization) -> None:
    """Write the folder of a CTC student (:func:`~askd_ray.models.ctc.save_ctc`) as an ONNX folder, atomically.

    ``int8``: the weights of matrix products are int8, with a scale for each column. Their inputs are rounded to 8 bits
    when the model runs, with a scale for each product (:class:`RowScaled` ones for each position), so a clip's result
    depends on the other clips of a batch.

    Raises :class:`AskdError` when the student's files are missing or damaged.
    """
    model, tokens = load_ctc(source)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        if quantization == "int8":
            for layer in model.encoder.layers:
                linear = layer.get_submodule("fc2")
                assert isinstance(linear, nn.Linear)
                layer.fc2 = RowScaled(linear)
        _export(model, temporary / ONNX_FILE)
        if quantization == "int8":
            _quantize(temporary / ONNX_FILE)
        shutil.copyfile(tokens.file, temporary / "tokenizer.json")
        config = {"num_mel_bins": model.config.num_mel_bins, "token_ids": list(model.head.vocabulary.token_ids)}
        write_json(temporary / "config.json", config)


@torch.no_grad()
def _export(model: CtcModel, file: Path) -> None:
    """Write a model in float32, for any batch and any even number of frames up to 3,000.

    By tracing: it needs no further package, and ONNX Runtime fuses its graph as well as that of the newer exporter.
    """
    example = torch.zeros(2, model.config.num_mel_bins, 3 * FRAMES_PER_S)
    with warnings.catch_warnings():  # of the newer exporter, and that Python values are traced: none depends on lengths
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(file),
            input_names=["log_mel"],
            output_names=["log_probs"],
            dynamic_axes={"log_mel": {0: "batch", 2: "frames"}, "log_probs": {0: "batch", 1: "positions"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _quantize(file: Path) -> None:
    """Replace a model by its int8 weights."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / ONNX_FILE
        quant_pre_process(file, prepared, skip_optimization=True, skip_symbolic_shape=True)  # infers the shapes
        quantize_dynamic(prepared, file, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
