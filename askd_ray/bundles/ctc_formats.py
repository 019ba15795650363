"""The formats of a CTC student's bundle. All decode trimmed windows, as the student was trained."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.formats import Format
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx


def _transcribe(folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None) -> list[str]:
    engine = CtcEngine(folder, window=window)
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


CTC_FORMATS = (
    Format(
        "transformers",
        "torch",
        shutil.copytree,
        _transcribe,
        trims=True,
        compared_with="float32",
        same_weights=True,
        pads=False,
    ),
    Format(
        "onnx-int8",
        "int8",
        lambda source, folder: write_onnx(source, folder, "int8"),
        _transcribe,
        trims=True,
        compared_with="float32",
        pads=False,
    ),
    Format(
        "onnx-float32",
        "float32",
        lambda source, folder: write_onnx(source, folder, "float32"),
        _transcribe,
        trims=True,
        compared_with=None,
        pads=False,
    ),
)
"""In the order in which they are written."""
