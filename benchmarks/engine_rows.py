"""The rows of benchmarks/engines.py: the formats of the student, and the programs that people run the teacher with."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_systems
from student_formats import described, written

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.formats import FORMATS, is_available
from askd_ray.errors import AskdError
from askd_ray.models.bundle import ONNXRUNTIME_FOLDER
from askd_ray.models.description import BundleReader
from askd_ray.models.ggml import GGML_FILES
from askd_ray.models.load import ctranslate2_folder, load_whisper, quiet_transformers, save_whisper
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE
from askd_ray.models.stock import StockWhisper
from askd_ray.models.whisper_onnx import ONNX_FILES
from askd_ray.text.tokens import Tokens

MODERATE = DecodingWindow(silence_s=0.3, min_s=8.0)
"""The window of stock weights: in most shorter ones a stock Whisper repeats itself."""
FASTER_WHISPER = "faster-whisper"
OURS: dict[BundleReader, str] = {"whisper": "student, served engine int8", "ctc": "student, ONNX int8"}
"""The format that `askd serve` runs on a CPU, by the reader of the student."""
UNROUNDED: dict[BundleReader, str] = {"whisper": "student, CTranslate2 float32", "ctc": "student, ONNX float32"}
"""The format with which the WERs of the other formats are compared."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a system, and the files of its weights; or the reason why it is not measured."""

    name: str
    make: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    weights: tuple[Path, ...] = ()
    problem: str = ""

    @property
    def is_student(self) -> bool:
        """Whether the system runs the student."""
        return self.name.startswith("student,")

    @property
    def is_needed(self) -> bool:
        """Whether the results compare other rows with this one."""
        return self.is_student or self.name == FASTER_WHISPER


@dataclass(frozen=True)
class Compared:
    """A model in a comparison: its folder, its scratch folder, and the window in which trimming engines run it."""

    source: Path
    scratch: Path
    window: DecodingWindow
    threads: int
    reader: BundleReader = "whisper"

    def folder(self, name: str) -> Path:
        """Return the folder of a format, which is written if the model does not have it.

        Raises :class:`AskdError` when a package is missing, and when the model cannot have the format.
        """
        form = next(form for form in FORMATS[self.reader] if form.name == name)
        if not is_available(form):
            raise AskdError(f"{form.requires} is not installed: pip install 'askd-ray[exports]'")
        if (self.scratch / name).is_dir():
            return self.scratch / name
        with quiet_transformers():
            return written([form], self.source, self.scratch)[name]


def rows_of(student: Path | None, teacher: str, threads: int, scratch: Path, quick: bool) -> list[Row]:
    """Return all rows. ``student`` None: the weights of the teacher, in windows of at least 8 s.

    ``quick`` leaves out the ``onnx`` format, which takes long to write, and whisper.cpp with unrounded weights.
    """
    of_teacher = Compared(scratch / "teacher", scratch / "teacher-formats", MODERATE, threads)
    of_teacher.scratch.mkdir()
    save_whisper(*load_whisper(teacher), of_teacher.source)
    of_student = of_teacher
    if student is not None:
        reader, window = described(student)
        of_student = Compared(student, scratch / "student-formats", window, threads, reader)
        of_student.scratch.mkdir()
    if of_student.reader == "ctc":
        formats = list(_ctc_rows(of_student))
    else:
        folder = of_student.folder("ctranslate2-int8")
        formats = [
            _served_row(of_student, of_student.folder(ONNXRUNTIME_FOLDER), folder),
            _ctranslate2_row(of_student, "student, CTranslate2 int8", folder, "int8"),
            _ctranslate2_row(of_student, UNROUNDED["whisper"], of_student.folder("ctranslate2-float16"), "float32"),
        ]
        formats += [*_ggml_rows(of_student, "student", quick), *_onnx_rows(of_student, "student", quick)]
    return [*formats, *_peers(of_teacher, teacher, quick)]


def _served_row(model: Compared, folder: Path, full: Path) -> Row:
    files = (folder / ENCODER_FILE, folder / DECODER_FILE, full / "model.bin")
    return Row(OURS["whisper"], engine_systems.served, (folder, full, model.threads, model.window), files)


def _ctranslate2_row(model: Compared, name: str, folder: Path, compute_type: str) -> Row:
    args = (folder, compute_type, model.threads, model.window)
    return Row(name, engine_systems.ctranslate2, args, (folder / "model.bin",))


def _ctc_rows(model: Compared) -> Iterator[Row]:
    for name, of in ((OURS["ctc"], "onnx-int8"), (UNROUNDED["ctc"], "onnx-float32")):
        folder = model.folder(of)
        yield Row(name, engine_systems.ctc, (folder, model.threads, model.window), (folder / "model.onnx",))


def _ggml_rows(model: Compared, whose: str, quick: bool) -> Iterator[Row]:
    try:
        folder = model.folder("ggml")
    except AskdError as error:
        yield Row(f"{whose}, whisper.cpp", problem=str(error))
        return
    for kind in ("q8_0",) if quick else GGML_FILES:
        file = folder / GGML_FILES[kind]
        if whose == "teacher":
            yield Row(f"teacher, whisper.cpp {kind}", engine_systems.whisper_cpp, (file, model.threads, None), (file,))
        args = (file, model.threads, model.window)
        yield Row(f"{whose}, whisper.cpp {kind}, audio_ctx", engine_systems.whisper_cpp, args, (file,))


def _onnx_rows(model: Compared, whose: str, quick: bool) -> Iterator[Row]:
    """Return the rows of the ``onnx`` format: of a student in both runtimes, of the teacher in OpenVINO."""
    if quick:
        yield Row(f"{whose}, ONNX", problem="--quick leaves it out")
        return
    has_openvino = importlib.util.find_spec("openvino") is not None
    if not has_openvino:
        yield Row(f"{whose}, OpenVINO", problem="openvino is not installed: pip install openvino")
    if whose == "teacher" and not has_openvino:
        return
    try:
        folder = model.folder("onnx")
    except AskdError as error:
        yield Row(f"{whose}, ONNX", problem=str(error))
        return
    for kind in ONNX_FILES:
        args, files = (folder, kind, model.threads, model.window), tuple(folder / name for name in ONNX_FILES[kind])
        if whose == "student":
            yield Row(f"student, ONNX Runtime {kind}", engine_systems.onnx, args, files)
        if has_openvino:
            yield Row(f"{whose}, OpenVINO {kind}", engine_systems.openvino, args, files)


def _peers(model: Compared, teacher: str, quick: bool) -> Iterator[Row]:
    folder = ctranslate2_folder(teacher)
    weights = (folder / "model.bin",)
    yield Row(FASTER_WHISPER, StockWhisper, (folder, model.threads), weights)
    yield Row("faster-whisper, batched", engine_systems.BatchedFasterWhisper, (folder, model.threads), weights)
    yield from _ggml_rows(model, "teacher", quick)
    files = (model.source / "model.safetensors",)
    yield Row("transformers", engine_systems.Transformers, (model.source, model.threads), files)
    yield from _onnx_rows(model, "teacher", quick)
    if not quick:
        yield _onnx_asr_row(model)


def _onnx_asr_row(model: Compared) -> Row:
    name = "onnx-asr int8"
    if importlib.util.find_spec("onnx_asr") is None:
        return Row(name, problem="onnx_asr is not installed: pip install onnx-asr")
    if not Tokens(model.source).multilingual:
        return Row(name, problem="its prompt is that of multilingual models, and the teacher is English-only")
    folder = model.folder("onnx")
    files = tuple(folder / file for file in ONNX_FILES["int8"])
    return Row(name, engine_systems.onnx_asr, (folder, model.threads), files)
