"""A Whisper in an ONNX folder of model hubs, in ONNX Runtime, in trimmed or in padded windows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.files import read_json
from askd_ray.models.clip_batches import batch_log_mel, clip_window_samples
from askd_ray.models.onnx_export import Quantization
from askd_ray.models.onnx_folder import check_files, one_line_errors, open_session, session_options
from askd_ray.models.whisper_onnx import ONNX_FILES, cache_names
from askd_ray.text.tokens import Tokens, max_tokens

_SETTINGS = ("config.json", "generation_config.json")
_CACHES = ("past_key_values", "present")


class OnnxWhisper:
    """A folder of :func:`~askd_ray.models.whisper_onnx.write_whisper_onnx`; decodes greedily, one clip at a time.

    ``window`` None means windows of 30 s. ``threads`` = 0 uses all cores.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(
        self, folder: Path, quantization: Quantization, *, threads: int = 0, window: DecodingWindow | None = None
    ):
        files = ONNX_FILES[quantization]
        check_files(folder, (*files, *_SETTINGS, "tokenizer.json"), "Whisper")
        self.window, self._tokens = window, Tokens(folder)
        with one_line_errors(folder):
            config, generation = (read_json(folder / name) for name in _SETTINGS)
            self._n_mels = int(config["num_mel_bins"])
            self._never: list[int] = generation.get("suppress_tokens") or []
            self._not_first: list[int] = generation.get("begin_suppress_tokens") or []
            self._past, self._present = (cache_names(config["decoder_layers"], of) for of in _CACHES)
            width = config["d_model"] // config["decoder_attention_heads"]
            self._nothing = np.zeros((1, config["decoder_attention_heads"], 0, width), np.float32)
            self._encoder, self._decoder = (self._open(folder / name, threads) for name in files)

    def _open(self, file: Path, threads: int) -> InferenceSession:
        return open_session(file, session_options(threads))

    def transcribe(self, waveform: Waveform, language: str = "en") -> str:
        """Return the text of a clip of at most 30 s.

        Raises :class:`AskdError` for a language that the model does not know.
        """
        ids = list(self._tokens.prompt(language))
        n_samples = clip_window_samples(waveform, self.window, self._n_mels)
        log_mel = batch_log_mel([waveform], n_samples, self.window, self._n_mels)
        (states,) = self._encoder.run(["last_hidden_state"], {"input_features": log_mel.numpy()})
        cache: list[NDArray[np.float32]] = [self._nothing] * len(self._past)
        written = list[int]()
        for n_written in range(max_tokens(n_samples / SAMPLE_RATE_HZ)):
            inputs = {"input_ids": np.array([ids]), "encoder_hidden_states": states}
            inputs |= {"use_cache_branch": np.array([n_written > 0]), **dict(zip(self._past, cache, strict=True))}
            logits, *cache = map(np.asarray, self._decoder.run(["logits", *self._present], inputs))
            last = logits[0, -1]
            last[self._never] = -np.inf
            if n_written == 0:
                last[self._not_first] = -np.inf
            ids = [int(last.argmax())]
            if ids[0] == self._tokens.end:
                break
            written += ids
        return self._tokens.decode(written)
