"""The formats of a student for benchmarks: those of its bundle, and others written into a temporary folder."""

from collections.abc import Iterable
from pathlib import Path

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.formats import Format
from askd_ray.config.schema import Window
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.bundle import BUNDLE_FILE
from askd_ray.models.ctc import is_ctc_student
from askd_ray.models.description import BundleReader, reader_of, window_of

MAX_DIFFERENCE = 0.5
"""The points of WER by which a format may differ from the unrounded one."""


def described(student: Path) -> tuple[BundleReader, DecodingWindow]:
    """Return the reader and the window of a bundle or of a student's folder."""
    if (student / BUNDLE_FILE).is_file():
        description = read_json(student / BUNDLE_FILE)
        return reader_of(description), window_of(description)
    if not (student / "model.safetensors").is_file():
        raise AskdError(f"--student {student}: neither a bundle nor the transformers folder of a student")
    return "ctc" if is_ctc_student(student) else "whisper", DecodingWindow.of(Window())


def written(formats: Iterable[Format], student: Path, scratch: Path) -> dict[str, Path]:
    """Return the folder of each format: that of the bundle, or a new one."""
    bundle = (student / BUNDLE_FILE).is_file()
    folders = dict[str, Path]()
    for form in formats:
        folders[form.name] = student / form.name if bundle else scratch / form.name
        if not folders[form.name].is_dir():
            folders[form.name] = scratch / form.name
            form.write(student / "transformers" if bundle else student, folders[form.name])
    return folders
