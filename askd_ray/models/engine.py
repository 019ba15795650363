"""The decoding engine: waveforms to text with CTranslate2, in trimmed or in padded windows.

The service and the evaluation use it. It needs neither Ray nor transformers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import ctranslate2
import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import (
    HOP_LENGTH,
    PADDED_SAMPLES,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_POSITION,
    DecodingWindow,
    samples_of,
)
from askd_ray.errors import AskdError
from askd_ray.models.clip_batches import batch_log_mel, check_durations, clip_window_samples, window_batches
from askd_ray.models.cublas import load_cublas
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.tokens import MAX_TOKENS, Tokens, max_tokens
from askd_ray.torch_setup import Device, n_cores

_POSITIONS_PER_S = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION
MAX_BATCH_S: dict[Device, float] = {"cpu": 60.0, "cuda": 480.0}
"""The most audio in a batch, in seconds of windows: attention over 30 s takes most memory."""


class _Alignment(Protocol):
    """CTranslate2's WhisperAlignmentResult, which is missing in its type stubs."""

    alignments: Sequence[tuple[int, int]]
    text_token_probs: Sequence[float]


class Engine:
    """A Whisper in a CTranslate2 folder (model.bin, config.json, tokenizer.json); decodes greedily by default.

    ``window`` is for models that were trained with trimmed windows; None means windows of 30 s, padded as
    openai/whisper does, for every other Whisper. It may be changed between calls. ``threads`` = 0 uses all cores. Up to
    ``workers`` threads may call the engine in parallel, with the same results.

    Raises :class:`AskdError` when the folder is incomplete or the model cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        compute_type: str = "int8",
        threads: int = 0,
        workers: int = 1,
        device: Device = "cpu",
        window: DecodingWindow | None = None,
        decoding: Decoding = GREEDY,
    ):
        for name in ("model.bin", "config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise AskdError(f"{folder / name} does not exist: the engine needs a CTranslate2 folder of a Whisper")
        if device == "cuda":
            load_cublas()
        try:
            self._model = ctranslate2.models.Whisper(
                str(folder),
                device=device,
                compute_type=compute_type,
                intra_threads=threads or n_cores(),
                inter_threads=workers,
            )
        except (RuntimeError, ValueError) as error:
            raise AskdError(f"{folder} cannot be loaded by CTranslate2: {' '.join(str(error).split())}") from None
        self._tokens = Tokens(folder)
        self.window = window
        self._decoding = decoding
        self._batch_samples = samples_of(MAX_BATCH_S[device])
        self._prompt("en", decoding)  # loads the tokenizer now, not in the first request

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the model."""
        return self._tokens.languages

    @property
    def path_reader(self) -> None:
        """None: a decoder writes a text, not a path."""
        return None

    @property
    def mixes_windows(self) -> bool:
        """False: a batch has only clips of one window length."""
        return False

    def fit_prompt(self, prompt: str) -> str:
        """Return the end of a prompt, cut to the length that the model has positions for."""
        return self._tokens.fit_prompt(prompt)

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Transcribe clips of at most 30 s each; the transcripts are in the clips' order.

        ``language`` None detects each clip's language. ``decoding`` replaces the engine's options for this call. A
        batch has only clips of the same window, so a text never depends on the other clips.

        Raises :class:`AskdError` for a longer clip, a language that the model does not know, and too long a prompt.
        """
        check_durations(waveforms)
        decoding = decoding or self._decoding
        if not self._tokens.multilingual:
            language = language or "en"
        self._prompt(language or "en", decoding)  # validate language and prompt before any work
        windows = [self.window_samples(waveform) for waveform in waveforms]
        transcripts: dict[int, Transcript] = {}
        for window, batch in window_batches(windows, self._batch_samples):
            decoded = self._decode([waveforms[i] for i in batch], window, language, decoding)
            transcripts |= zip(batch, decoded, strict=True)
        return [transcripts[i] for i in range(len(waveforms))]

    def transcribe_states(self, states: NDArray[np.float32], languages: Sequence[str]) -> list[Transcript]:
        """Transcribe windows of 30 s by their encoder states ``(batch, 1500, d_model)``, which need no second pass.

        The states are those of the same weights, computed elsewhere. Raises :class:`AskdError` as ``transcribe`` does.
        """
        view = ctranslate2.StorageView.from_array(states)
        return self._decode_states(view, PADDED_SAMPLES, languages, self._decoding)

    def align(
        self, waveforms: Sequence[Waveform], transcripts: Sequence[Transcript], decoding: Decoding
    ) -> list[Transcript]:
        """Return transcripts of clips, which another engine of the same weights wrote, with confidence and times.

        Raises :class:`AskdError` as ``transcribe`` does.
        """
        aligned: dict[int, Transcript] = {}
        windows = [self.window_samples(waveform) for waveform in waveforms]
        for window, batch in window_batches(windows, self._batch_samples):
            states = self._encode([waveforms[i] for i in batch], window)
            prompts = [self._prompt(transcripts[i].language, decoding) for i in batch]
            token_ids = [list(transcripts[i].token_ids) for i in batch]
            found = self._align(states, prompts, token_ids, window)
            for i, alignment in zip(batch, found, strict=True):
                aligned[i] = self._with_alignment(transcripts[i], alignment)
        return [aligned[i] for i in range(len(waveforms))]

    def _prompt(self, language: str, decoding: Decoding) -> tuple[int, ...]:
        return self._tokens.prompt(language, decoding.prompt, decoding.timestamps, decoding.task)

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of a clip's window, in samples; a batch has only clips of one window length."""
        return clip_window_samples(waveform, self.window, self._model.n_mels)

    def _decode(
        self, waveforms: Sequence[Waveform], window: int, language: str | None, decoding: Decoding
    ) -> list[Transcript]:
        states = self._encode(waveforms, window)
        languages = [language] * len(waveforms) if language is not None else self._detect_languages(states)
        return self._decode_states(states, window, languages, decoding)

    def _encode(self, waveforms: Sequence[Waveform], window: int) -> ctranslate2.StorageView:
        log_mel = batch_log_mel(waveforms, window, self.window, self._model.n_mels)
        states = self._model.encode(ctranslate2.StorageView.from_array(log_mel.numpy()))
        assert states.shape[1] != self._model.n_mels, "CTranslate2 would take these states for a log-mel"
        return states

    def _decode_states(
        self, states: ctranslate2.StorageView, window: int, languages: Sequence[str], decoding: Decoding
    ) -> list[Transcript]:
        prompts = [self._prompt(spoken, decoding) for spoken in languages]
        # CTranslate2 limits the new tokens to max_length / 2, and to max_length - (prompt length - 1).
        max_new_tokens = min(max_tokens(window / SAMPLE_RATE_HZ), 2 * MAX_TOKENS - len(prompts[0]))
        max_length = max(2 * max_new_tokens, max_new_tokens + len(prompts[0]) - 1)
        results = self._model.generate(
            states,
            [list(prompt) for prompt in prompts],
            beam_size=decoding.beam_size,
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=decoding.no_speech,
            suppress_blank=True,
            suppress_tokens=[-1],  # those that the model's config.json names
            sampling_topk=0 if decoding.temperature else 1,
            sampling_temperature=decoding.temperature or 1.0,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        )
        transcripts = [self._transcript(*clip, max_new_tokens) for clip in zip(results, languages, strict=True)]
        if decoding.confidence:
            aligned = self._align(states, prompts, [list(t.token_ids) for t in transcripts], window)
            transcripts = [self._with_alignment(*clip) for clip in zip(transcripts, aligned, strict=True)]
        return transcripts if decoding.no_speech else [replace(t, no_speech_prob=None) for t in transcripts]

    def _detect_languages(self, states: ctranslate2.StorageView) -> list[str]:
        """Return the detected language of each clip."""
        return [ranked[0][0].strip("<|>") for ranked in self._model.detect_language(states)]

    def _align(
        self,
        states: ctranslate2.StorageView,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[list[int]],
        window: int,
    ) -> list[_Alignment]:
        """Return the probability of each token of each clip, given the tokens before it, and its time."""
        alignments: dict[int, _Alignment] = {}
        for prompt in dict.fromkeys(prompts):  # one call of align takes one prompt
            rows = [i for i, clip_prompt in enumerate(prompts) if clip_prompt == prompt]
            part = states if len(rows) == len(prompts) else _rows(states, rows)
            # CTranslate2 adds <|notimestamps|> after the given start sequence.
            aligned = self._model.align(part, list(prompt[:-1]), [token_ids[i] for i in rows], window // HOP_LENGTH)
            for i, alignment in zip(rows, aligned, strict=True):
                alignments[i] = alignment
        return [alignments[i] for i in range(len(prompts))]

    def _transcript(
        self,
        result: "ctranslate2.models.WhisperGenerationResult",
        language: str,
        max_new_tokens: int,
    ) -> Transcript:
        ids = result.sequences_ids[0]
        # The score includes the end token's log-probability, but is divided by the number of tokens without it.
        log_prob = result.scores[0] * max(len(ids), 1)
        return Transcript(
            text=self._tokens.decode(ids),
            token_ids=tuple(ids),
            avg_logprob=log_prob / (len(ids) + 1),
            no_speech_prob=result.no_speech_prob,
            ended=len(ids) < max_new_tokens,
            language=language,
        )

    def _with_alignment(self, transcript: Transcript, alignment: _Alignment) -> Transcript:
        ids = list(transcript.token_ids)
        return replace(
            transcript,
            token_texts=self._tokens.pieces(ids),
            token_probs=tuple(alignment.text_token_probs[: len(ids)]),
            token_times=_token_times(alignment.alignments, len(ids)),
        )


def _token_times(path: Sequence[tuple[int, int]], n_tokens: int) -> tuple[float, ...]:
    """Return the start of each token and of the end token, in seconds.

    ``path``: ordered pairs of token and encoder position, the warping path through the cross-attention.
    """
    first: dict[int, int] = {}
    for token, position in path:
        first.setdefault(token, position)
    last = path[-1][1] if path else 0
    return tuple(first.get(i, last) / _POSITIONS_PER_S for i in range(n_tokens + 1))


def _rows(states: ctranslate2.StorageView, rows: Sequence[int]) -> ctranslate2.StorageView:
    """Return some of a batch's encoder states."""
    return ctranslate2.StorageView.from_array(
        np.ascontiguousarray(np.asarray(states.to_device(ctranslate2.Device.cpu))[list(rows)])
    )
