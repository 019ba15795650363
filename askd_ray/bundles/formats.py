"""The formats of a bundle: how each is written from the student's transformers folder, and how it transcribes.

To add one, extend :data:`FORMATS`, or :data:`CTC_FORMATS` for CTC students; models/card.py says how it is used.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx
from askd_ray.models.engine import Engine
from askd_ray.models.load import convert_to_ctranslate2
from askd_ray.text.tokens import MAX_TOKENS, Tokens

Transcribe = Callable[[Path, Sequence[Utterance], DecodingWindow | None], list[str]]
"""Returns the texts of clips from a format's folder, in trimmed windows, or (None) in windows of 30 s."""


@dataclass(frozen=True)
class Format:
    """A format: its folder is called ``name``. ``label`` is its short name in results."""

    name: str
    label: str
    write: Callable[[Path, Path], object]
    """Writes the folder (second) from the student's transformers folder (first)."""
    transcribe: Transcribe
    trims: bool
    """Whether it decodes trimmed windows."""
    compared_with: str | None
    """The label of the format whose texts it is compared with; None for the one that others are compared with."""
    same_weights: bool = False
    """Whether both have the same weights: then more than a fifth of the words being different is an error."""
    pads: bool = True
    """Whether it decodes windows of 30 s."""


def _transcribe_with_engine(
    compute_type: str, folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None
) -> list[str]:
    engine = Engine(folder, compute_type=compute_type, window=window)
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


@torch.no_grad()
def _transcribe_with_transformers(folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None) -> list[str]:
    """Transcribe with transformers, greedily, with weights rounded to float16 as in the float16 folder."""
    assert window is None, "transformers' encoder takes 30 s"
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype="float32").half().float().eval()
    except (OSError, ValueError) as error:
        raise AskdError(f"{folder} cannot be loaded by transformers: {' '.join(str(error).split())[:300]}") from None
    model.generation_config.max_length = None  # max_new_tokens replaces it
    multilingual = Tokens(folder).multilingual
    texts: list[str] = []
    for clip in clips:
        # The processor would pad in another way.
        features = log_mel_padded([waveform_of(clip)], model.config.num_mel_bins)
        options = {"language": clip.language, "task": "transcribe"} if multilingual else {}
        ids = model.generate(features, num_beams=1, do_sample=False, max_new_tokens=MAX_TOKENS, **options)
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    return texts


# A CPU has no float16 arithmetic: it computes float16 weights in float32.
FORMATS = (
    Format(
        "transformers",
        "transformers",
        shutil.copytree,
        _transcribe_with_transformers,
        trims=False,
        compared_with="float16",
        same_weights=True,
    ),
    Format(
        "ctranslate2-int8",
        "int8",
        lambda source, folder: convert_to_ctranslate2(source, folder, "int8"),
        lambda folder, clips, window: _transcribe_with_engine("int8", folder, clips, window),
        trims=True,
        compared_with="float16",
    ),
    Format(
        "ctranslate2-float16",
        "float16",
        lambda source, folder: convert_to_ctranslate2(source, folder, "float16"),
        lambda folder, clips, window: _transcribe_with_engine("float32", folder, clips, window),
        trims=True,
        compared_with=None,
    ),
)
"""In the order in which they are written."""


def _transcribe_ctc(folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None) -> list[str]:
    engine = CtcEngine(folder, window=window)
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


CTC_FORMATS = (
    Format(
        "transformers",
        "torch",
        shutil.copytree,
        _transcribe_ctc,
        trims=True,
        compared_with="float32",
        same_weights=True,
        pads=False,
    ),
    Format(
        "onnx-int8",
        "int8",
        lambda source, folder: write_onnx(source, folder, "int8"),
        _transcribe_ctc,
        trims=True,
        compared_with="float32",
        pads=False,
    ),
    Format(
        "onnx-float32",
        "float32",
        lambda source, folder: write_onnx(source, folder, "float32"),
        _transcribe_ctc,
        trims=True,
        compared_with=None,
        pads=False,
    ),
)
"""Those of CTC students. All decode trimmed windows, as the students were trained."""
