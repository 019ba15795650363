"""What computes a CTC student's log-probabilities: ONNX Runtime on CPUs, torch on a GPU."""

import threading
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.files import read_json
from askd_ray.models.onnx_folder import check_files, one_line_errors, open_session, session_options
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import Device, inference_dtype


class CtcRunner(Protocol):
    """A CTC student's model; several threads may call it at the same time."""

    n_mels: int
    token_ids: tuple[int, ...]
    """The tokens of the classes after the blank."""
    tokens: Tokens

    def log_probs(self, log_mel: torch.Tensor) -> NDArray[np.float32]:
        """Return log-probabilities ``(batch, n_frames / 2, n_classes)`` of windows ``(batch, n_mels, n_frames)``."""
        ...


class OnnxCtcRunner:
    """An ONNX folder of :func:`askd_ray.models.ctc_onnx.write_onnx`, in ONNX Runtime on the CPU.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, threads: int):
        check_files(folder, ("model.onnx", "config.json", "tokenizer.json"), "CTC")
        with one_line_errors(folder):
            config = read_json(folder / "config.json")
            self.n_mels, self.token_ids = int(config["num_mel_bins"]), tuple(map(int, config["token_ids"]))
            self._session = open_session(folder / "model.onnx", session_options(threads))
        self.tokens = Tokens(folder)

    def log_probs(self, log_mel: torch.Tensor) -> NDArray[np.float32]:
        """Return log-probabilities ``(batch, n_frames / 2, n_classes)`` of windows ``(batch, n_mels, n_frames)``."""
        return np.asarray(self._session.run(["log_probs"], {"log_mel": log_mel.numpy()})[0])


class TorchCtcRunner:
    """The folder of :func:`askd_ray.models.ctc.save_ctc`, in torch: in float16 on a GPU, in float32 on the CPU.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, device: Device):
        from askd_ray.models.ctc import load_ctc  # transformers takes seconds to import, and ONNX Runtime needs none

        model, self.tokens = load_ctc(folder)
        self._device = torch.device(device)
        self._model = model.to(self._device, inference_dtype(self._device))
        self._lock = threading.Lock()
        self.n_mels, self.token_ids = model.config.num_mel_bins, model.head.vocabulary.token_ids

    @torch.no_grad()
    def log_probs(self, log_mel: torch.Tensor) -> NDArray[np.float32]:
        """Return log-probabilities ``(batch, n_frames / 2, n_classes)`` of windows ``(batch, n_mels, n_frames)``."""
        with self._lock:
            return self._model(log_mel.to(self._device, inference_dtype(self._device))).cpu().numpy()


def open_runner(folder: Path, device: Device, threads: int) -> CtcRunner:
    """Open a folder in the runner that reads it. A GPU takes folders of torch only.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """
    if device == "cpu" and not (folder / "model.safetensors").is_file():
        return OnnxCtcRunner(folder, threads)
    return TorchCtcRunner(folder, device)
