"""An engine on ONNX Runtime that decodes with drafts: CTranslate2 returns no logits for several given tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.models.bound import token_limit
from askd_ray.models.draft import EMPTY, NGRAM_SIZE, Draft, ctc_draft
from askd_ray.models.draft_decoding import DraftOptions, Verified, decode_with_draft
from askd_ray.models.onnx_folder import one_line_errors, open_fused
from askd_ray.text.tokens import Tokens, max_tokens
from askd_ray.text.units import CtcVocabulary

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedClip:
    """A clip that the encoder has read: the decoder's inputs of cross-attention, and what CTC has written.

    ``draft`` is None for a model without a CTC head.
    """

    cross: dict[str, NDArray[Any]]
    window_s: float
    draft: Draft | None


class DraftEngine:
    """A Whisper in a folder of :func:`askd_ray.models.fused_onnx.write_fused_onnx`; decodes one clip at a time.

    ``window`` None means windows of 30 s. ``threads`` = 0 uses all cores. ``max_entropy``: see
    :class:`~askd_ray.models.draft_decoding.DraftOptions`; it may be changed between calls.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        window: DecodingWindow | None = None,
        max_entropy: float | None = None,
        ngram_size: int = NGRAM_SIZE,
    ):
        model = open_fused(folder, threads, "hybrid")
        self.tokens, self.window = Tokens(folder), window
        self.max_entropy, self._ngram_size = max_entropy, ngram_size
        self._encoder, self._decoder, self._no_past = model.encoder, model.decoder, model.no_past(1)
        with one_line_errors(folder):
            self.n_mels, token_ids = int(model.config["num_mel_bins"]), tuple(map(int, model.config["token_ids"]))
            self._not_first: list[int] = model.config["begin_suppress_tokens"]
            self._min_margin = float(model.config["min_margin"])
        self._vocabulary = CtcVocabulary(token_ids) if token_ids else None

    def encode(self, waveform: Waveform) -> EncodedClip:
        """Run the encoder on a clip of at most 30 s, and the CTC head if there is one."""
        if self.window is None:
            samples, log_mel = PADDED_SAMPLES, log_mel_padded([waveform], self.n_mels)
        else:
            samples = self.window.samples(len(waveform), self.n_mels)
            log_mel = log_mel_windows([waveform], [samples], self.n_mels)
        names = [output.name for output in self._encoder.get_outputs()]
        outputs = map(np.asarray, self._encoder.run(names, {"log_mel": log_mel.numpy()}))
        found: dict[str, NDArray[Any]] = dict(zip(names, outputs, strict=True))
        draft = None
        if self._vocabulary is not None:
            draft = ctc_draft(found.pop("ctc_log_probs")[0], self._vocabulary, self.tokens)
        found["lengths"] = np.array([log_mel.shape[2] // 2], np.int32)
        return EncodedClip(found, samples / SAMPLE_RATE_HZ, draft)

    def decode(self, clip: EncodedClip, language: str = "en", draft: Draft | None = None) -> Verified:
        """Return the text of a clip; ``draft`` replaces that of CTC.

        What CTC wrote bounds the text (:func:`~askd_ray.models.bound.token_limit`), if the model has a head.
        """
        limit = max_tokens(clip.window_s) if clip.draft is None else token_limit(clip.draft, clip.window_s)
        options = DraftOptions(limit, self.max_entropy, self._ngram_size)
        return self._decode(clip, language, draft or clip.draft or EMPTY, options)

    def greedy(self, clip: EncodedClip, language: str = "en", limit: int | None = None) -> Verified:
        """Return the greedy text, one token in each pass; ``limit`` None is that of a window without a bound."""
        limit = max_tokens(clip.window_s) if limit is None else limit
        return self._decode(clip, language, EMPTY, DraftOptions(limit, None, 0))

    def _decode(self, clip: EncodedClip, language: str, draft: Draft, options: DraftOptions) -> Verified:
        decoder = _OnnxDecoder(self._decoder, clip.cross, self._no_past, self._not_first, self._min_margin)
        return decode_with_draft(decoder, self.tokens.prompt(language), self.tokens.end, draft, options)


class _OnnxDecoder:
    """The decoder session with the cache of one clip.

    A pass over several tokens and passes over each of them round differently. Where greedy's two best tokens are so
    close that this could decide, the tokens before are read again one at a time, as greedy decoding does.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cross: dict[str, NDArray[Any]],
        no_past: Array,
        not_first: list[int],
        min_margin: float,
    ):
        self._session, self._cross, self._past = session, cross, no_past
        self._not_first = not_first
        self._min_margin = min_margin
        self._ids, self._n_exact = list[int](), 0  # the first tokens were read as greedy decoding reads them
        self.n_passes = 0

    def greedy_after(self, n_kept: int, ids: Sequence[int], n_prompt: int) -> list[int]:
        """Read ``ids`` after the first ``n_kept`` tokens; see :class:`~askd_ray.models.draft_decoding.Decoder`."""
        best, margins = self._read(n_kept, ids, n_prompt)
        first = len(self._ids) - len(best)  # the place of the token after which best[0] comes
        for row, margin in enumerate(margins):
            n_read = first + row + 1
            if margin < self._min_margin and n_read > self._n_exact:
                return [*best[:row], self._read_again(n_read, n_prompt)]
            if n_read < len(self._ids) and best[row] != self._ids[n_read]:
                break  # what follows depends on a token that greedy does not write
        return best

    def _read_again(self, n_read: int, n_prompt: int) -> int:
        """Read the first tokens as greedy decoding does, and return greedy's token after them."""
        ids, best = self._ids[:n_read], list[int]()
        while self._n_exact < n_read:
            end = max(self._n_exact + 1, n_prompt)
            best, _ = self._read(self._n_exact, ids[self._n_exact : end], n_prompt)
        return best[-1]

    def _read(self, n_kept: int, ids: Sequence[int], n_prompt: int) -> tuple[list[int], list[float]]:
        """Return greedy's tokens, and by how much their log-probabilities are larger than those of the second best."""
        first = max(n_prompt - 1 - n_kept, 0)
        inputs = {
            "ids": np.array([ids], np.int64),
            "first": np.array(first, np.int64),
            "past": np.ascontiguousarray(self._past[:, :, :, :n_kept]),
            **self._cross,
        }
        log_probs, self._past = map(np.asarray, self._session.run(["log_probs", "present"], inputs))
        rows = log_probs[0]
        self.n_passes += 1
        self._ids = [*self._ids[:n_kept], *ids]
        self._n_exact = min(self._n_exact, n_kept)
        if self._n_exact == n_kept and len(self._ids) == max(n_kept + 1, n_prompt):
            self._n_exact = len(self._ids)
        if n_kept < n_prompt:
            rows[0, self._not_first] = -np.inf
        places, best = np.arange(len(rows)), rows.argmax(axis=-1)
        largest = rows[places, best]
        rows[places, best] = -np.inf
        return best.tolist(), (largest - rows.max(axis=-1)).tolist()
