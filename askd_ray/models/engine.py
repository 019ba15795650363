"""The decoding engine: waveforms to text through CTranslate2, in trimmed or in padded windows.

What serves and what is measured. It needs neither Ray nor transformers.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import ctranslate2
import torch

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import HOP_LENGTH, PADDED_S, PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of, window_samples
from askd_ray.errors import AskdError
from askd_ray.text.tokens import MOST_TOKENS, Tokens, most_tokens
from askd_ray.torch_setup import n_cores

_GRID_SAMPLES = samples_of(0.2)  # trimmed windows are rounded up to this, so that clips of similar length share one
_BATCH_CPU_S, _BATCH_GPU_S = 60.0, 480.0  # most audio in a batch: attention over 30 s is what fills the memory


@dataclass(frozen=True)
class Transcript:
    """What the engine heard in a clip.

    ``token_ids`` come without prompt and end token; ``avg_logprob`` is the mean log-probability of the tokens and the
    end token, in nats; ``no_speech_prob`` is the model's own, which a student may have unlearnt. Where ``ended`` is
    False the decoding ran into its limit: the model did not stop by itself. Where :attr:`Decoding.confidence` asks for
    them, ``token_texts`` is what each token adds to the text, and ``token_probs`` how probable it was.
    """

    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    ended: bool = True
    token_texts: tuple[str, ...] = ()
    token_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How text is searched for: ``beam_size`` 1 is greedy; ``previous`` is text that stands before the transcript.

    ``confidence`` also asks how probable each token was: the decoder reads the text once more, without timestamps.
    """

    beam_size: int = 1
    timestamps: bool = False
    previous: str = ""
    confidence: bool = False


GREEDY = Decoding()
"""What serves and what is measured."""


class Engine:
    """A Whisper in a CTranslate2 folder (model.bin, config.json, tokenizer.json), greedy unless told otherwise.

    With ``silence_s`` the encoder sees a clip and at least that much silence (up to 0.2 s more): for models that were
    trained so. With None it sees 30 s, as every other Whisper expects. ``threads`` = 0 takes all cores.

    Raises :class:`AskdError` when the folder is incomplete or the model cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        compute_type: str = "int8",
        threads: int = 0,
        device: str = "cpu",
        silence_s: float | None = 0.3,
        decoding: Decoding = GREEDY,
    ):
        for name in ("model.bin", "config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise AskdError(f"{folder / name} does not exist: the engine needs a CTranslate2 folder of a Whisper")
        try:
            self._model = ctranslate2.models.Whisper(
                str(folder), device=device, compute_type=compute_type, intra_threads=threads or n_cores()
            )
        except (RuntimeError, ValueError) as error:
            raise AskdError(f"{folder} cannot be loaded by CTranslate2: {' '.join(str(error).split())}") from None
        self._tokens = Tokens(folder)
        self._silence_s = silence_s
        self._decoding = decoding
        self._batch_samples = samples_of(_BATCH_CPU_S if device == "cpu" else _BATCH_GPU_S)
        self._prompt("en")  # reads the tokenizer now and not in the first request

    def transcribe(self, waveforms: Sequence[Waveform], language: str = "en") -> list[Transcript]:
        """Transcribe clips of at most 30 s each; the answers are in the clips' order.

        A clip is batched only with clips of the same window, so its text never depends on its neighbours.

        Raises :class:`AskdError` for a longer clip, or a language that the model does not know.
        """
        for number, waveform in enumerate(waveforms):
            if len(waveform) > PADDED_SAMPLES:
                raise AskdError(
                    f"clip {number} is {duration_s(waveform):.1f} s long: at most {PADDED_S:g} s is allowed"
                )
        prompt = self._prompt(language)
        windows = [self._window(waveform) for waveform in waveforms]
        transcripts: dict[int, Transcript] = {}
        for window, same in groupby(sorted(range(len(waveforms)), key=windows.__getitem__), windows.__getitem__):
            indices = list(same)
            size = max(1, self._batch_samples // window)
            for batch in (indices[i : i + size] for i in range(0, len(indices), size)):
                heard = self._decode([waveforms[i] for i in batch], window, prompt)
                transcripts |= zip(batch, heard, strict=True)
        return [transcripts[i] for i in range(len(waveforms))]

    def _prompt(self, language: str) -> tuple[int, ...]:
        return self._tokens.prompt(language, self._decoding.previous, self._decoding.timestamps)

    def _window(self, waveform: Waveform) -> int:
        if self._silence_s is None:
            return PADDED_SAMPLES
        window = window_samples(len(waveform), self._silence_s)
        return min(-(-window // _GRID_SAMPLES) * _GRID_SAMPLES, PADDED_SAMPLES)

    def _decode(self, waveforms: Sequence[Waveform], window: int, prompt: tuple[int, ...]) -> list[Transcript]:
        with _one_torch_thread():
            log_mel = log_mel_windows(waveforms, [window] * len(waveforms), self._model.n_mels)
        # CTranslate2 allows half of max_length as new tokens, and what is left behind the prompt's last but one token.
        most = min(most_tokens(window / SAMPLE_RATE_HZ), 2 * MOST_TOKENS - len(prompt))
        max_length = max(2 * most, most + len(prompt) - 1)
        states = self._model.encode(ctranslate2.StorageView.from_array(log_mel.numpy()))
        results = self._model.generate(
            states,
            [list(prompt)] * len(waveforms),
            beam_size=self._decoding.beam_size,
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],  # those that the model's config.json names
        )
        probs = self._probs(states, prompt, results, window) if self._decoding.confidence else [()] * len(results)
        return [self._transcript(result, most, p) for result, p in zip(results, probs, strict=True)]

    def _probs(
        self,
        states: ctranslate2.StorageView,
        prompt: tuple[int, ...],
        results: "Sequence[ctranslate2.models.WhisperGenerationResult]",
        window: int,
    ) -> list[tuple[float, ...]]:
        """Return the probability of each token, given those before it."""
        written = [result.sequences_ids[0] for result in results]
        # CTranslate2 puts <|notimestamps|> behind the start that it is given.
        aligned = self._model.align(states, list(prompt[:-1]), written, window // HOP_LENGTH)
        return [tuple(a.text_token_probs[: len(ids)]) for a, ids in zip(aligned, written, strict=True)]

    def _transcript(
        self, result: "ctranslate2.models.WhisperGenerationResult", most: int, probs: tuple[float, ...]
    ) -> Transcript:
        ids = result.sequences_ids[0]
        # The score is divided by the number of tokens, the end token not counted, although its probability is in it.
        log_prob = result.scores[0] * max(len(ids), 1)
        mean, ended = log_prob / (len(ids) + 1), len(ids) < most
        pieces = self._tokens.pieces(ids) if probs else ()
        return Transcript(self._tokens.decode(ids), tuple(ids), mean, result.no_speech_prob, ended, pieces, probs)


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
