"""Stock faster-whisper, the peer of every comparison: one adapter, so that all compare with the same thing.

This module must not import torch: faster-whisper does not need it, and collects garbage for each clip, which takes
about 45 ms longer in a process that has imported torch (docs/LOG.md).
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from askd_ray.errors import AskdError
from askd_ray.models.cublas import load_cublas

if TYPE_CHECKING:
    from askd_ray.torch_setup import Device


class StockWhisper:
    """faster-whisper as it is usually run: greedy, 30 s windows, in int8 on the CPU and in float16 on a GPU.

    ``threads`` = 0 takes its default. ``timestamps`` also decodes timestamp tokens, as it does by default.

    Raises :class:`AskdError` when it cannot load the CTranslate2 folder.
    """

    def __init__(self, folder: Path, threads: int = 0, device: "Device" = "cpu", timestamps: bool = True):
        from faster_whisper import WhisperModel  # imported here: elsewhere it would count as memory of other systems

        if device == "cuda":
            load_cublas()
        compute_type = "int8" if device == "cpu" else "float16"
        try:
            self._model = WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=threads)
        except (RuntimeError, ValueError) as error:
            raise AskdError(f"{folder} cannot be loaded by faster-whisper: {' '.join(str(error).split())}") from None
        self._timestamps = timestamps

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of an audio file: its segments are a generator, which works while it is read."""
        segments, _ = self._model.transcribe(
            io.BytesIO(audio),
            language=language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=not self._timestamps,
        )
        return "".join(segment.text for segment in segments).strip()
