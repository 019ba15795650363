"""The engine of short clips on a CPU: greedy decoding in ONNX Runtime, and everything else in CTranslate2.

In a short window, a decoder step is a few products with one row, and starting operators costs as much as they do. ONNX
Runtime in fused operators takes half of CTranslate2's time for a short clip (docs/performance.md).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log1p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.models.clip_batches import batch_log_mel, check_durations, clip_window_samples
from askd_ray.models.engine import Engine
from askd_ray.models.onnx_folder import one_line_errors, open_fused
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.tokens import MAX_TOKENS, Tokens, max_tokens

Array = NDArray[np.float32]
_CONTEXT_TOKENS = 2 * MAX_TOKENS  # that Whisper's decoder has positions for


class OnnxEngine:
    """A Whisper in a folder of :func:`askd_ray.models.fused_onnx.write_fused_onnx`, with that in CTranslate2's folder.

    ``full`` is the engine of the same weights in CTranslate2. It decodes what is not greedy, or has timestamps, or an
    unknown language, and it aligns tokens to times. Its ``window`` is also that of this engine, where it may be changed
    between calls. ``threads`` = 0 uses all cores. Any number of threads may call the engine in parallel, with the same
    results.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, full: Engine, threads: int = 0, decoding: Decoding = GREEDY):
        model = open_fused(folder, threads, "Whisper")
        self._full, self._decoding, self._tokens = full, decoding, Tokens(folder)
        self.window = full.window
        self._encoder, self._decoder, self._no_past = model.encoder, model.decoder, model.no_past
        with one_line_errors(folder):
            self._n_mels = int(model.config["num_mel_bins"])
            self._not_first = list[int](model.config["begin_suppress_tokens"])
        self._cross = [f"cross_{part}_{i}" for i in range(len(self._no_past) // 2) for part in ("key", "value")]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the model."""
        return self._full.languages

    @property
    def path_reader(self) -> None:
        """None: a decoder writes a text, not a path."""
        return None

    def fit_prompt(self, prompt: str) -> str:
        """Return the end of a prompt, cut to the length that the model has positions for."""
        return self._full.fit_prompt(prompt)

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of a clip's window, in samples."""
        return clip_window_samples(waveform, self.window, self._n_mels)

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Transcribe clips of at most 30 s each, one after the other; the transcripts are in the clips' order.

        ``language`` None detects each clip's language. ``decoding`` replaces the engine's options for this call.

        Raises :class:`AskdError` for a longer clip, a language that the model does not know, and too long a prompt.
        """
        decoding = decoding or self._decoding
        self._full.window = self.window
        if not self._tokens.multilingual:
            language = language or "en"
        if language is None or not _is_greedy(decoding):
            return self._full.transcribe(waveforms, language, decoding)
        check_durations(waveforms)
        prompt = self._tokens.prompt(language, decoding.prompt, task=decoding.task)
        transcripts = [self._transcribe(waveform, prompt, language) for waveform in waveforms]
        return self._full.align(waveforms, transcripts, decoding) if decoding.confidence else transcripts

    def _transcribe(self, waveform: Waveform, prompt: tuple[int, ...], language: str) -> Transcript:
        window = self.window_samples(waveform)
        log_mel = batch_log_mel([waveform], window, self.window, self._n_mels)
        cross = self._encoder.run(self._cross, {"log_mel": log_mel.numpy()})
        limit = min(max_tokens(window / SAMPLE_RATE_HZ), _CONTEXT_TOKENS - len(prompt))
        inputs = dict(zip(self._cross, cross, strict=True))
        unread, written, log_prob = prompt, list[int](), 0.0
        past, ended = self._no_past, False
        while not ended and len(written) < limit:
            read = {"ids": np.array([unread], np.int64), "first": np.array(len(unread) - 1), "past": past}
            rows, past = map(np.asarray, self._decoder.run(["log_probs", "present"], {**inputs, **read}))
            token, token_log_prob = self._best(rows[0], not written)
            log_prob += token_log_prob
            ended, unread = token == self._tokens.end, (token,)
            written += () if ended else unread
        return Transcript(
            text=self._tokens.decode(written),
            token_ids=tuple(written),
            avg_logprob=log_prob / (len(written) + 1),
            ended=ended,
            language=language,
        )

    def _best(self, log_probs: Array, is_first: bool) -> tuple[int, float]:
        """Return the most probable token and its log-probability among the allowed ones."""
        removed = 0.0
        if is_first:
            removed = float(np.exp(log_probs[self._not_first]).sum())
            log_probs[self._not_first] = -np.inf
        token = int(log_probs.argmax())
        return token, float(log_probs[token]) - log1p(-min(removed, 1.0 - exp(-20.0)))


def _is_greedy(decoding: Decoding) -> bool:
    """Whether a decoding takes the most probable token each time, and only the text is asked for."""
    plain = replace(decoding, prompt="", confidence=False, task="transcribe")
    return plain == GREEDY
