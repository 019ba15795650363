"""The decoding engine of CTC students: waveforms to text with one encoder pass, without a decoder.

The service and the evaluation use it as they use :class:`askd_ray.models.engine.Engine`. It needs neither Ray nor, on
CPUs, transformers.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION, DecodingWindow, samples_of
from askd_ray.errors import AskdError
from askd_ray.models.clip_batches import batch_log_mel, check_durations, clip_window_samples, window_batches
from askd_ray.models.ctc_decoding import beam_classes, greedy_classes, sequence_log_probs
from askd_ray.models.ctc_runners import open_runner
from askd_ray.models.engine import MAX_BATCH_S
from askd_ray.models.transcript import GREEDY, Decoding, Transcript, UnitPath
from askd_ray.text.ctc_alignment import LogProbs, class_spans, greedy_path
from askd_ray.text.units import BLANK
from askd_ray.torch_setup import Device

_POSITIONS_PER_S = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION


class CtcEngine:
    """A CTC student in an ONNX folder, on the CPU, or in its own folder, in torch; decodes greedily by default.

    ``window`` None means windows of 30 s. It may be changed between calls. ``threads`` = 0 uses all cores. Several
    threads may call the engine in parallel, with the same results. ``languages`` are those of the student's speech;
    empty: all languages of its tokenizer.

    A transcript's ``avg_logprob`` is the log-probability of its text, with all of its alignments, divided by the number
    of tokens and one: an engine with a decoder counts an end token there. ``no_speech_prob`` is the probability of the
    empty text. Each token has the greatest probability of its positions, and ``token_times`` begin where a token begins
    in the most probable alignment. ``ended`` is always True: a text has no more tokens than the clip has positions.

    A prompt has no effect: there is no decoder that reads it. :meth:`fit_prompt` returns an empty one.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        device: Device = "cpu",
        window: DecodingWindow | None = None,
        decoding: Decoding = GREEDY,
        languages: Sequence[str] = (),
    ):
        self._runner = open_runner(folder, device, threads)
        self._tokens = self._runner.tokens
        self._units = (b"", *(self._tokens.bytes_of(i) for i in self._runner.token_ids))  # of each class
        self.window = window
        self._decoding = decoding
        self._languages = tuple(languages) or self._tokens.languages
        # On a CPU a batch is no faster than its clips alone, and int8 would make a clip's result depend on the batch.
        self._batch_samples = 0 if device == "cpu" else samples_of(MAX_BATCH_S[device])

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the student."""
        return self._languages

    @property
    def path_reader(self) -> "CtcEngine":
        """The engine itself."""
        return self

    @property
    def mixes_windows(self) -> bool:
        """False: a batch has only clips of one window length."""
        return False

    def fit_prompt(self, prompt: str) -> str:
        """Return an empty prompt: CTC reads none."""
        return ""

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of a clip's window, in samples."""
        return clip_window_samples(waveform, self.window, self._runner.n_mels)

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Transcribe clips of at most 30 s each; the transcripts are in the clips' order.

        ``language`` None is the student's language, if it has only one. ``decoding`` replaces the engine's options for
        this call. A text never depends on the other clips.

        Raises :class:`AskdError` for a longer clip, a language that the student does not know, and for what CTC cannot
        do: translate, sample with a temperature, write timestamps, and detect the language.
        """
        check_durations(waveforms)
        decoding = decoding or self._decoding
        _check(decoding)
        language = self._checked_language(language)
        transcripts = {i: self._transcript(rows, language, decoding) for i, rows in self._log_probs(waveforms)}
        return [transcripts[i] for i in range(len(waveforms))]

    def read_paths(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[UnitPath]:
        """Return the most probable path through each clip of at most 30 s, one unit for each whole 20 ms of the clip.

        ``language`` None is the student's language, if it has only one. A path never depends on the other clips.

        Raises :class:`AskdError` for a longer clip, and a language that the student does not know.
        """
        check_durations(waveforms)
        language = self._checked_language(language)
        paths: dict[int, UnitPath] = {}
        for i, rows in self._log_probs(waveforms):
            path = greedy_path(rows[: len(waveforms[i]) // SAMPLES_PER_POSITION])
            paths[i] = UnitPath(tuple(self._units[c] for c in path.tolist()), language)
        return [paths[i] for i in range(len(waveforms))]

    def _log_probs(self, waveforms: Sequence[Waveform]) -> Iterator[tuple[int, LogProbs]]:
        """Yield the number of each clip, in any order, with the log-probabilities of its window's positions."""
        windows = [self.window_samples(waveform) for waveform in waveforms]
        for window, batch in window_batches(windows, self._batch_samples):
            log_mel = batch_log_mel([waveforms[i] for i in batch], window, self.window, self._runner.n_mels)
            yield from zip(batch, self._runner.log_probs(log_mel), strict=True)

    def _checked_language(self, language: str | None) -> str:
        first, *others = self._languages
        if language is None and others:
            raise AskdError(f"a CTC student does not detect the language: give one of {', '.join(self._languages)}")
        if language is not None and language not in self._languages:
            known = ", ".join(self._languages)
            raise AskdError(f"language {language!r}: this student was trained for {known} only")
        return language or first

    def _transcript(self, log_probs: LogProbs, language: str, decoding: Decoding) -> Transcript:
        if decoding.beam_size == 1 and not decoding.no_repeat_ngram_size:
            classes = greedy_classes(log_probs)
        else:
            classes = beam_classes(log_probs, decoding.beam_size, decoding.no_repeat_ngram_size)
        ids = [self._runner.token_ids[c - 1] for c in classes]
        spans = class_spans(log_probs, classes) if decoding.confidence else None
        return Transcript(
            text=self._tokens.decode(ids),
            token_ids=tuple(ids),
            avg_logprob=sequence_log_probs(log_probs, [classes])[0] / (len(ids) + 1),
            no_speech_prob=math.exp(float(log_probs[:, BLANK].sum())) if decoding.no_speech else None,
            token_texts=() if spans is None else self._tokens.pieces(ids),
            token_probs=() if spans is None else spans.probs,
            token_times=() if spans is None else tuple(p / _POSITIONS_PER_S for p in (*spans.starts, spans.end)),
            language=language,
        )


def _check(decoding: Decoding) -> None:
    """Raise an :class:`AskdError` for options that CTC cannot follow."""
    if decoding.task != "transcribe":
        raise AskdError(f"task {decoding.task!r}: a CTC student cannot translate, only 'transcribe' is allowed")
    if decoding.temperature:
        raise AskdError(f"temperature {decoding.temperature:g}: a CTC student does not sample, only 0 is allowed")
    if decoding.timestamps:
        raise AskdError("timestamps: a CTC student writes no timestamp tokens; ask for confidence to get token times")
