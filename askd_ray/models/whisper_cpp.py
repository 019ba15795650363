"""whisper.cpp, by pywhispercpp (the extra ``exports``), in trimmed windows."""

from pathlib import Path

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, SAMPLES_PER_POSITION, DecodingWindow
from askd_ray.models.ggml import ggml_tensors
from askd_ray.text.tokens import max_tokens
from askd_ray.torch_setup import n_cores

_N_MELS = 80  # only CTranslate2's windows depend on it


class WhisperCpp:
    """A GGML file of a Whisper in whisper.cpp; decodes greedily, one clip at a time, without temperatures.

    ``window`` None means windows of 30 s: whisper.cpp pads the waveform, while the engines of this package pad the
    log-mel. ``threads`` = 0 uses all cores.

    Raises :class:`AskdError` when the file is missing or damaged.
    """

    def __init__(self, file: Path, *, threads: int = 0, window: DecodingWindow | None = None):
        from pywhispercpp.model import Model

        ggml_tensors(file)
        self.window = window
        self._model = Model(
            str(file),
            redirect_whispercpp_logs_to=None,
            # Flash attention has keys of 0 up to the next multiple of 256 positions, and gives them weight: the text of
            # a trimmed window changes.
            context_params={"use_gpu": False, "flash_attn": False},
            n_threads=threads or n_cores(),
            no_timestamps=True,
            single_segment=True,
            suppress_blank=False,  # it would write something in every clip: students may leave a text empty
            suppress_nst=True,  # the tokens that the generation configs of Whisper suppress
            temperature_inc=0.0,
            no_speech_thold=1.0,  # a student may have unlearnt it
            greedy={"best_of": 1},
            print_progress=False,
        )

    def transcribe(self, waveform: Waveform, language: str = "en") -> str:
        """Return the text of a clip of at most 30 s."""
        n_samples = PADDED_SAMPLES if self.window is None else self.window.samples(len(waveform), _N_MELS)
        segments = self._model.transcribe(
            np.pad(waveform, (0, n_samples - len(waveform))),
            language=language,
            audio_ctx=n_samples // SAMPLES_PER_POSITION,
            max_tokens=max_tokens(n_samples / SAMPLE_RATE_HZ),
        )
        return "".join(segment.text for segment in segments).strip()
