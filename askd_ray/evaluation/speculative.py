"""Measures speculative decoding with the student as draft model: same text, less time? (docs/evaluation.md)"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import window_samples
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.latency import percentile_ms, speedup
from askd_ray.models.generate import greedy
from askd_ray.models.speculative import N_DRAFTED, SpeculativeResult, check_vocabularies, speculate
from askd_ray.progress import bar
from askd_ray.results.timing import SpeculativeScores
from askd_ray.text.tokens import Tokens

LoadedWhisper = tuple[WhisperForConditionalGeneration, Tokens]
"""The result of :func:`askd_ray.models.load.load_whisper`, on any device."""

_T = TypeVar("_T")


def speculative_scores(
    teacher: LoadedWhisper,
    student: LoadedWhisper,
    utterances: Sequence[Utterance],
    silence_s: float | None,
    n_drafted: int = N_DRAFTED,
) -> SpeculativeScores:
    """Let the teacher transcribe clips of at most 30 s alone and with the student as draft model, one clip at a time.

    ``silence_s`` is the silence behind the clip in the student's window; None is a 30 s window. Both methods run in
    torch on the models' device and are timed from the audio file to the tokens. They alternate, and the first method
    changes with every clip. The first clip is transcribed once before the measurement, as warm-up.

    Raises :class:`AskdError` without clips, and when the vocabularies differ.
    """
    if not utterances:
        raise AskdError("speculative decoding cannot be measured: there is no clip")
    check_vocabularies(teacher[1], student[1])
    pair = _Pair(teacher, student, silence_s, n_drafted)
    pair.alone(utterances[0])
    pair.with_draft(utterances[0])
    texts: list[list[int]] = []
    speculated: list[SpeculativeResult] = []
    alone_s, drafted_s = np.zeros(len(utterances)), np.zeros(len(utterances))
    with bar("speculative decoding", len(utterances), "clip") as progress:
        for i, utterance in enumerate(utterances):
            if i % 2:
                drafted, drafted_s[i] = _timed(pair.with_draft, utterance)
                text, alone_s[i] = _timed(pair.alone, utterance)
            else:
                text, alone_s[i] = _timed(pair.alone, utterance)
                drafted, drafted_s[i] = _timed(pair.with_draft, utterance)
            texts.append(text)
            speculated.append(drafted)
            progress.advance(1)
    n_proposed, n_accepted = sum(s.n_drafted for s in speculated), sum(s.n_accepted for s in speculated)
    n_written, n_passes = sum(len(s.token_ids) + 1 for s in speculated), sum(s.n_passes for s in speculated)
    return {
        "clips": len(utterances),
        "identical": float(np.mean([s.token_ids == text for s, text in zip(speculated, texts, strict=True)])),
        "acceptance_rate": round(n_accepted / n_proposed, 4) if n_proposed else None,
        "drafted": n_proposed,
        "accepted": n_accepted,
        "tokens_per_pass": round(n_written / n_passes, 3),
        "drafted_per_turn": n_drafted,
        "speedup": speedup(alone_s, drafted_s),
        "p50_ms": {"teacher": percentile_ms(alone_s, 50), "speculative": percentile_ms(drafted_s, 50)},
        "device": str(teacher[0].device),
        "dtype": str(teacher[0].dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class _Pair:
    teacher: LoadedWhisper
    student: LoadedWhisper
    silence_s: float | None
    n_drafted: int

    def alone(self, utterance: Utterance) -> list[int]:
        model, tokens = self.teacher
        window = _window(model, waveform_of(utterance), None)
        return greedy(model, tokens, window, tokens.prompt(utterance.language))[0]

    def with_draft(self, utterance: Utterance) -> SpeculativeResult:
        (teacher, tokens), (student, _), waveform = self.teacher, self.student, waveform_of(utterance)
        windows = _window(teacher, waveform, None), _window(student, waveform, self.silence_s)
        return speculate(teacher, student, tokens, windows, tokens.prompt(utterance.language), self.n_drafted)


def _window(model: WhisperForConditionalGeneration, waveform: Waveform, silence_s: float | None) -> torch.Tensor:
    n_mels = model.config.num_mel_bins
    if silence_s is None:
        return log_mel_padded([waveform], n_mels).to(model.device, model.dtype)
    window = window_samples(len(waveform), silence_s)
    return log_mel_windows([waveform], [window], n_mels).to(model.device, model.dtype)


def _timed(transcribe: Callable[[Utterance], _T], utterance: Utterance) -> tuple[_T, float]:
    begun = time.perf_counter()
    return transcribe(utterance), time.perf_counter() - begun
