"""The decoding engine: waveforms to text through CTranslate2, in trimmed or in padded windows.

What serves and what is measured. It needs neither Ray nor transformers.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import ctranslate2
import numpy as np
import torch

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import (
    HOP_LENGTH,
    PADDED_S,
    PADDED_SAMPLES,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_POSITION,
    decoding_window_samples,
    samples_of,
)
from askd_ray.errors import AskdError
from askd_ray.models.cublas import load_cublas
from askd_ray.text.tokens import MAX_TOKENS, Tokens, max_tokens
from askd_ray.torch_setup import n_cores

_POSITIONS_PER_S = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION
_BATCH_CPU_S, _BATCH_GPU_S = 60.0, 480.0  # most audio in a batch: attention over 30 s is what fills the memory


Task = Literal["transcribe", "translate"]
"""``translate`` is to English, whatever the language."""


class _Alignment(Protocol):
    """CTranslate2's WhisperAlignmentResult, which its stubs leave out."""

    alignments: Sequence[tuple[int, int]]
    text_token_probs: Sequence[float]


@dataclass(frozen=True)
class Transcript:
    """What the engine heard in a clip.

    ``token_ids`` come without prompt and end token; ``avg_logprob`` is the mean log-probability of the tokens and the
    end token, in nats; ``no_speech_prob`` is the model's own, which a student may have unlearnt. Where ``ended`` is
    False the decoding ran into its limit: the model did not stop by itself. ``language`` is what it was taken for.

    Where :attr:`Decoding.confidence` asks for them, ``token_texts`` is what each token adds to the text,
    ``token_probs`` how probable it was, and ``token_times`` when it begins, in seconds from the clip's start; one time
    more says when the last one ends.
    """

    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    ended: bool = True
    token_texts: tuple[str, ...] = ()
    token_probs: tuple[float, ...] = ()
    token_times: tuple[float, ...] = ()
    language: str = "en"


@dataclass(frozen=True)
class Decoding:
    """How text is searched for: ``beam_size`` 1 is greedy; ``prompt`` is text that stands before the transcript.

    ``confidence`` also asks how probable each token was and when it was said: the decoder reads the text once more,
    without timestamps, and the cross-attention of its alignment heads tells the times (dynamic time warping, as in
    openai/whisper's timing.py). With a ``temperature`` tokens are sampled instead of searched for. A sequence of
    ``no_repeat_ngram_size`` tokens may occur only once in a text; 0 disables the rule.
    """

    beam_size: int = 1
    timestamps: bool = False
    prompt: str = ""
    confidence: bool = False
    task: Task = "transcribe"
    temperature: float = 0.0
    no_repeat_ngram_size: int = 0


GREEDY = Decoding()
"""What serves and what is measured."""


class Engine:
    """A Whisper in a CTranslate2 folder (model.bin, config.json, tokenizer.json), greedy unless told otherwise.

    With ``silence_s`` the encoder sees a clip and at least that much silence (up to 0.2 s more): for models that were
    trained so. With None it sees 30 s, filled up as openai/whisper does, for every other Whisper. ``threads`` = 0 takes
    all cores. As many as ``workers`` threads may call it at once; what they hear does not depend on that.

    Raises :class:`AskdError` when the folder is incomplete or the model cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        compute_type: str = "int8",
        threads: int = 0,
        workers: int = 1,
        device: str = "cpu",
        silence_s: float | None = 0.3,
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
        self._silence_s = silence_s
        self._decoding = decoding
        self._batch_samples = samples_of(_BATCH_CPU_S if device == "cpu" else _BATCH_GPU_S)
        self._prompt("en", decoding)  # reads the tokenizer now and not in the first request

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the model knows."""
        return self._tokens.languages

    def fit_prompt(self, prompt: str) -> str:
        """Return the end of a text that may stand before a transcript, as much as the model has positions for."""
        return self._tokens.fit_prompt(prompt)

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Transcribe clips of at most 30 s each; the answers are in the clips' order.

        Where ``language`` is None, each clip's own is found out. ``decoding`` stands in for the engine's own for these
        clips. A clip is batched only with clips of the same window, so its text never depends on its neighbours.

        Raises :class:`AskdError` for a longer clip, a language that the model does not know, and too long a prompt.
        """
        for number, waveform in enumerate(waveforms):
            if len(waveform) > PADDED_SAMPLES:
                raise AskdError(
                    f"clip {number} is {duration_s(waveform):.1f} s long: at most {PADDED_S:g} s is allowed"
                )
        decoding = decoding or self._decoding
        if not self._tokens.multilingual:
            language = language or "en"
        self._prompt(language or "en", decoding)  # what is wrong with it is said now
        windows = [self.window_samples(waveform) for waveform in waveforms]
        transcripts: dict[int, Transcript] = {}
        for window, same in groupby(sorted(range(len(waveforms)), key=windows.__getitem__), windows.__getitem__):
            indices = list(same)
            size = max(1, self._batch_samples // window)
            for batch in (indices[i : i + size] for i in range(0, len(indices), size)):
                heard = self._decode([waveforms[i] for i in batch], window, language, decoding)
                transcripts |= zip(batch, heard, strict=True)
        return [transcripts[i] for i in range(len(waveforms))]

    def _prompt(self, language: str, decoding: Decoding) -> tuple[int, ...]:
        return self._tokens.prompt(language, decoding.prompt, decoding.timestamps, decoding.task)

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of the window that a clip is decoded in; only clips of one window share a batch."""
        if self._silence_s is None:
            return PADDED_SAMPLES
        return decoding_window_samples(len(waveform), self._silence_s, self._model.n_mels)

    def _decode(
        self, waveforms: Sequence[Waveform], window: int, language: str | None, decoding: Decoding
    ) -> list[Transcript]:
        with _one_torch_thread():
            log_mel = self._log_mel(waveforms, window)
        states = self._model.encode(ctranslate2.StorageView.from_array(log_mel.numpy()))
        assert states.shape[1] != self._model.n_mels, "CTranslate2 would take these states for a log-mel"
        spoken = [language] * len(waveforms) if language is not None else self._spoken(states)
        prompts = [self._prompt(its, decoding) for its in spoken]
        # CTranslate2 allows half of max_length as new tokens, and what is left behind the prompt's last but one token.
        most = min(max_tokens(window / SAMPLE_RATE_HZ), 2 * MAX_TOKENS - len(prompts[0]))
        max_length = max(2 * most, most + len(prompts[0]) - 1)
        results = self._model.generate(
            states,
            [list(prompt) for prompt in prompts],
            beam_size=decoding.beam_size,
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],  # those that the model's config.json names
            sampling_topk=0 if decoding.temperature else 1,
            sampling_temperature=decoding.temperature or 1.0,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        )
        aligned: Sequence[_Alignment | None] = [None] * len(results)
        if decoding.confidence:
            aligned = self._align(states, prompts, results, window)
        heard = zip(results, spoken, aligned, strict=True)
        return [self._transcript(result, most, its, alignment) for result, its, alignment in heard]

    def _log_mel(self, waveforms: Sequence[Waveform], window: int) -> torch.Tensor:
        if self._silence_s is None:
            return log_mel_padded(waveforms, self._model.n_mels)
        return log_mel_windows(waveforms, [window] * len(waveforms), self._model.n_mels)

    def _spoken(self, states: ctranslate2.StorageView) -> list[str]:
        """Return the language of each clip."""
        return [ranked[0][0].strip("<|>") for ranked in self._model.detect_language(states)]

    def _align(
        self,
        states: ctranslate2.StorageView,
        prompts: Sequence[tuple[int, ...]],
        results: "Sequence[ctranslate2.models.WhisperGenerationResult]",
        window: int,
    ) -> list[_Alignment | None]:
        """Return how probable each token was, given those before it, and when it was said."""
        written = [result.sequences_ids[0] for result in results]
        found: list[_Alignment | None] = [None] * len(written)
        for prompt in dict.fromkeys(prompts):  # one call takes one start
            same = [i for i, its in enumerate(prompts) if its == prompt]
            part = states if len(same) == len(prompts) else _rows(states, same)
            # CTranslate2 puts <|notimestamps|> behind the start that it is given.
            aligned = self._model.align(part, list(prompt[:-1]), [written[i] for i in same], window // HOP_LENGTH)
            found = [aligned[same.index(i)] if i in same else its for i, its in enumerate(found)]
        return found

    def _transcript(
        self,
        result: "ctranslate2.models.WhisperGenerationResult",
        most: int,
        language: str,
        alignment: _Alignment | None,
    ) -> Transcript:
        ids = result.sequences_ids[0]
        # The score is divided by the number of tokens, the end token not counted, although its probability is in it.
        log_prob = result.scores[0] * max(len(ids), 1)
        return Transcript(
            text=self._tokens.decode(ids),
            token_ids=tuple(ids),
            avg_logprob=log_prob / (len(ids) + 1),
            no_speech_prob=result.no_speech_prob,
            ended=len(ids) < most,
            token_texts=() if alignment is None else self._tokens.pieces(ids),
            token_probs=() if alignment is None else tuple(alignment.text_token_probs[: len(ids)]),
            token_times=() if alignment is None else _token_times(alignment.alignments, len(ids)),
            language=language,
        )


def _token_times(path: Sequence[tuple[int, int]], n_tokens: int) -> tuple[float, ...]:
    """Return when each of the tokens and the end token begins, in seconds.

    ``path`` are pairs of token and encoder position, in order: the warping path through the cross-attention.
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


@contextmanager
def _one_torch_thread() -> Generator[None]:
    """Keep torch to one thread: its idle workers spin for a while and take the cores from CTranslate2's.

    With two threads on two cores a short clip takes half as long again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
