"""Transcribe recordings of any length with an engine that takes 30 s; for `askd transcribe` and long test sets."""

from collections.abc import Sequence
from typing import Protocol

from askd_ray.audio.chunking import split_into_chunks
from askd_ray.audio.decode import Waveform
from askd_ray.audio.vad import Vad
from askd_ray.models.engine import Transcript


class ClipEngine(Protocol):
    """An engine for clips of up to 30 s, such as :class:`askd_ray.models.engine.Engine`."""

    def transcribe(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[Transcript]:
        """Return the transcript of each clip."""
        ...


def transcribe_long(engine: ClipEngine, vad: Vad, waveform: Waveform, language: str = "en") -> Transcript:
    """Transcribe a recording of any length, chunk by chunk (:func:`askd_ray.audio.chunking.split_into_chunks`).

    Raises :class:`AskdError` for a language that the model does not know.
    """
    clips = [waveform[s.start : s.end] for s in split_into_chunks(waveform, vad.speech(waveform))]
    return join_transcripts([engine.transcribe([clip], language)[0] for clip in clips])


def join_transcripts(transcripts: Sequence[Transcript]) -> Transcript:
    """Join the transcripts of consecutive chunks; a single transcript is returned as it is.

    ``avg_logprob`` is the mean over all tokens and end tokens, and ``ended`` is True if it is True of all chunks. Token
    times and ``no_speech_prob`` are left out. Without chunks, the result is the transcript of silence.
    """
    if len(transcripts) == 1:
        return transcripts[0]
    lengths = [len(t.token_ids) + 1 for t in transcripts]
    log_prob = sum(t.avg_logprob * n for t, n in zip(transcripts, lengths, strict=True))
    return Transcript(
        text=" ".join(t.text for t in transcripts if t.text),
        token_ids=tuple(i for t in transcripts for i in t.token_ids),
        avg_logprob=log_prob / max(sum(lengths), 1),
        ended=all(t.ended for t in transcripts),
        token_texts=tuple(text for t in transcripts for text in _with_leading_space(t.token_texts)),
        token_probs=tuple(prob for t in transcripts for prob in t.token_probs),
    )


def _with_leading_space(token_texts: Sequence[str]) -> list[str]:
    """Return the texts of tokens with a space before the first, to separate them from the previous chunk."""
    return [" " + text.lstrip() if i == 0 else text for i, text in enumerate(token_texts)]
