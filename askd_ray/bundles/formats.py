"""The formats of a bundle: how each is written from the student's transformers folder, and how it transcribes.

To add one, extend :data:`FORMATS`; models/card_usage.py says how it is used.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError, did_you_mean
from askd_ray.models.bundle import ONNXRUNTIME_FOLDER
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx
from askd_ray.models.description import BundleReader
from askd_ray.models.engine import Engine
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.ggml import GGML_FILES, GgmlType, write_ggml
from askd_ray.models.load import convert_to_ctranslate2
from askd_ray.models.onnx_engine import OnnxEngine
from askd_ray.models.onnx_export import Quantization
from askd_ray.models.stock import StockWhisper
from askd_ray.models.whisper_cpp import WhisperCpp
from askd_ray.models.whisper_onnx import write_whisper_onnx
from askd_ray.models.whisper_onnx_engine import OnnxWhisper
from askd_ray.text.tokens import MAX_TOKENS, Tokens

_NOT_WRITTEN = {
    "openvino": "not written: openvino-genai computes 30 s for every clip; OpenVINO's runtime reads the format onnx"
}
"""Why there is no format of a name that people may ask for."""

Transcribe = Callable[[Path, Sequence[Utterance], DecodingWindow | None], list[str]]
"""Returns the texts of clips from a format's folder, in trimmed windows, or (None) in windows of 30 s."""


@dataclass(frozen=True)
class Reading:
    """A way to transcribe with a format's folder; ``label`` is its short name in results."""

    label: str
    transcribe: Transcribe
    compared_with: str | None
    """The label of the reading whose texts it is compared with; None for the one that others are compared with."""
    trims: bool = True
    """Whether it decodes trimmed windows."""
    pads: bool = True
    """Whether it decodes windows of 30 s, as faster-whisper pads them."""
    same_weights: bool = False
    """Whether both have the same weights: then more than a fifth of the words being different is an error."""


@dataclass(frozen=True)
class Format:
    """A format: its folder is called ``name``."""

    name: str
    write: Callable[[Path, Path], object]
    """Writes the folder (second) from the student's transformers folder (first)."""
    readings: tuple[Reading, ...]
    """The ways in which the folder is read; each is verified."""
    optional: bool = False
    """Whether a bundle has it only on request: ``askd export --formats NAME``."""
    requires: str | None = None
    """The module, of the extra ``exports``, that the readings need."""


def formats_to_write(reader: BundleReader, names: Iterable[str] = ()) -> tuple[Format, ...]:
    """Return the formats of every bundle of a reader, and the optional ones of these names.

    Raises :class:`AskdError` for a name that the reader has no format of, and when a package that an optional format
    needs is not installed.
    """
    table = FORMATS[reader]
    chosen = set(names)
    allowed = [form.name for form in table]
    for name in sorted(chosen - set(allowed)):
        of_others = any(form.name == name for forms in FORMATS.values() for form in forms)
        student = "a CTC student" if reader == "ctc" else "a student with a decoder"
        problem = f"{student} has no such format" if of_others else _NOT_WRITTEN.get(name, "there is no such format")
        hint = did_you_mean(name, allowed)
        raise AskdError(f"format {name}: {problem}; allowed are {', '.join(allowed)}{hint}")
    formats = tuple(form for form in table if not form.optional or form.name in chosen)
    for form in formats:
        if not is_available(form):
            raise AskdError(
                f"format {form.name}: {form.requires}, which verifies it, is not installed: "
                "pip install 'askd-ray[exports]'"
            )
    return formats


def is_available(form: Format) -> bool:
    """Whether the package that a format needs is installed."""
    return form.requires is None or importlib.util.find_spec(form.requires) is not None


def _transcribe_with_engine(
    compute_type: str, folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None
) -> list[str]:
    engine = Engine(folder, compute_type=compute_type, window=window)
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


def _transcribe_with_onnxruntime(folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None) -> list[str]:
    engine = OnnxEngine(folder, Engine(folder.parent / "ctranslate2-int8", window=window))
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


def _transcribe_with_faster_whisper(
    folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None
) -> list[str]:
    assert window is None, "faster-whisper pads to 30 s"
    stock = StockWhisper(folder, timestamps=False)
    return [stock.transcribe(clip.audio, clip.language) for clip in clips]


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


def _transcribe_ctc(folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None) -> list[str]:
    engine = CtcEngine(folder, window=window)
    return [engine.transcribe([waveform_of(clip)], clip.language)[0].text for clip in clips]


def _transcribe_with_whisper_cpp(
    kind: GgmlType, folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None
) -> list[str]:
    engine = WhisperCpp(folder / GGML_FILES[kind], window=window)
    return [engine.transcribe(waveform_of(clip), clip.language) for clip in clips]


def _transcribe_with_onnx(
    quantization: Quantization, folder: Path, clips: Sequence[Utterance], window: DecodingWindow | None
) -> list[str]:
    engine = OnnxWhisper(folder, quantization, window=window)
    return [engine.transcribe(waveform_of(clip), clip.language) for clip in clips]


# A CPU has no float16 arithmetic: it computes float16 weights in float32.
_WHISPER_FORMATS = (
    Format(
        "transformers",
        shutil.copytree,
        (Reading("transformers", _transcribe_with_transformers, "float16", trims=False, same_weights=True),),
    ),
    Format(
        "ctranslate2-int8",
        lambda source, folder: convert_to_ctranslate2(source, folder, "int8"),
        (
            Reading(
                "int8", lambda folder, clips, window: _transcribe_with_engine("int8", folder, clips, window), "float16"
            ),
            Reading("faster-whisper", _transcribe_with_faster_whisper, "int8", trims=False, same_weights=True),
        ),
    ),
    Format(
        "ctranslate2-float16",
        lambda source, folder: convert_to_ctranslate2(source, folder, "float16"),
        (
            Reading(
                "float16", lambda folder, clips, window: _transcribe_with_engine("float32", folder, clips, window), None
            ),
        ),
    ),
    Format(
        ONNXRUNTIME_FOLDER,
        lambda source, folder: write_fused_onnx(str(source), folder, "int8"),
        (Reading("onnxruntime int8", _transcribe_with_onnxruntime, "float16"),),
    ),
    Format(
        "ggml",
        lambda source, folder: write_ggml(str(source), folder),
        (
            Reading(
                "whisper.cpp f16",
                lambda folder, clips, window: _transcribe_with_whisper_cpp("f16", folder, clips, window),
                "float16",
                pads=False,
                same_weights=True,
            ),
            Reading(
                "whisper.cpp q8_0",
                lambda folder, clips, window: _transcribe_with_whisper_cpp("q8_0", folder, clips, window),
                "float16",
                pads=False,
            ),
        ),
        optional=True,
        requires="pywhispercpp",
    ),
    Format(
        "onnx",
        write_whisper_onnx,
        (
            Reading(
                "onnx float32",
                lambda folder, clips, window: _transcribe_with_onnx("float32", folder, clips, window),
                "float16",
                same_weights=True,
            ),
            Reading(
                "onnx int8",
                lambda folder, clips, window: _transcribe_with_onnx("int8", folder, clips, window),
                "float16",
            ),
        ),
        optional=True,
    ),
)

# CTC students decode trimmed windows only, as they were trained.
_CTC_FORMATS = (
    Format(
        "transformers",
        shutil.copytree,
        (Reading("torch", _transcribe_ctc, "float32", pads=False, same_weights=True),),
    ),
    Format(
        "onnx-int8",
        lambda source, folder: write_onnx(source, folder, "int8"),
        (Reading("int8", _transcribe_ctc, "float32", pads=False),),
    ),
    Format(
        "onnx-float32",
        lambda source, folder: write_onnx(source, folder, "float32"),
        (Reading("float32", _transcribe_ctc, None, pads=False),),
    ),
)

FORMATS: dict[BundleReader, tuple[Format, ...]] = {"whisper": _WHISPER_FORMATS, "ctc": _CTC_FORMATS}
"""By the bundle's reader, in the order in which they are written."""
