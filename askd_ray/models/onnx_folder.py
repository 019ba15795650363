"""Open a folder of ONNX models in ONNX Runtime, on the CPU."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.torch_setup import n_cores

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"
"""The models in a folder of :func:`askd_ray.models.fused_onnx.write_fused_onnx`."""
WHISPER_INT8_FILES = ("onnx/encoder_model_quantized.onnx", "onnx/decoder_model_merged_quantized.onnx")
"""The int8 files of :mod:`askd_ray.models.whisper_onnx`, here for readers that do not load the exporter."""


def check_files(folder: Path, names: Sequence[str], student: str) -> None:
    """Raise :class:`AskdError` for the first file that is missing in the ONNX folder of a kind of student."""
    for name in names:
        if not (folder / name).is_file():
            raise AskdError(f"{folder / name} does not exist: the engine needs the ONNX folder of a {student} student")


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of a session; ``threads`` = 0 uses all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or n_cores()
    options.log_severity_level = 3  # errors
    return options


def open_session(file: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a model on the CPU."""
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@contextmanager
def one_line_errors(folder: Path) -> Generator[None]:
    """Raise an :class:`AskdError` for whatever is wrong with a folder that is being opened."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"{folder} cannot be loaded by ONNX Runtime: {reason}") from None


@dataclass(frozen=True)
class FusedModel:
    """The sessions of a folder of :func:`askd_ray.models.fused_onnx.write_fused_onnx`.

    ``config`` is its config.json; ``cross`` are the names of the keys and values of cross-attention.
    """

    encoder: onnxruntime.InferenceSession
    decoder: onnxruntime.InferenceSession
    config: dict[str, Any]
    cross: tuple[str, ...]

    def no_past(self, n_clips: int) -> NDArray[np.float32]:
        """Return the decoder's cache before the first token."""
        n_parts, n_heads, width = self.config["past_shape"]
        return np.zeros((n_parts, n_clips, n_heads, 0, width), np.float32)


def open_fused(folder: Path, threads: int, student: str) -> FusedModel:
    """Open the folder of a kind of student; ``threads`` = 0 uses all cores.

    Raises :class:`AskdError` when it is incomplete, damaged, or of another version of this package.
    """
    check_files(folder, (ENCODER_FILE, DECODER_FILE, "config.json", "tokenizer.json"), student)
    options = session_options(threads)
    # Threads that wait actively take cores from other calls, and from the other session: on a busy machine of two cores
    # an encoder took 2.3 times as long, and a pass over ten tokens 2.7 times.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with one_line_errors(folder):
        config = read_json(folder / "config.json")
        encoder, decoder = (open_session(folder / name, options) for name in (ENCODER_FILE, DECODER_FILE))
        names = [output.name for output in encoder.get_outputs()]
        model = FusedModel(encoder, decoder, config, tuple(name for name in names if name.startswith("cross")))
        known = {"ids", "first", "past", "lengths", *model.cross}
        ranks = {part.name: len(part.shape) for part in decoder.get_inputs()}
        as_written_now = ranks.keys() == known and ranks["past"] == model.no_past(1).ndim
    if not as_written_now:
        raise AskdError(f"{folder} is of another version of askd-ray: write it again with askd export --force")
    return model
