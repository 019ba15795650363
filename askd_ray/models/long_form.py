"""Recordings of any length through an engine that takes 30 s: what `askd transcribe` and long test sets use."""

from collections.abc import Sequence
from typing import Protocol

from askd_ray.audio.chunking import split_into_chunks
from askd_ray.audio.decode import Waveform
from askd_ray.audio.vad import Vad
from askd_ray.models.engine import Transcript


class ClipEngine(Protocol):
    """What decodes clips of up to 30 s; :class:`askd_ray.models.engine.Engine` is the real one."""

    def transcribe(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[Transcript]:
        """Return the transcript of each clip."""
        ...


def transcribe_long(engine: ClipEngine, vad: Vad, waveform: Waveform, language: str = "en") -> Transcript:
    """Transcribe a recording of any length, stretch by stretch (:func:`askd_ray.audio.chunking.split_into_chunks`).

    Raises :class:`AskdError` for a language that the model does not know.
    """
    clips = [waveform[s.start : s.end] for s in split_into_chunks(waveform, vad.speech(waveform))]
    return joined([engine.transcribe([clip], language)[0] for clip in clips])


def joined(transcripts: Sequence[Transcript]) -> Transcript:
    """Return the transcripts of stretches that follow one another as one; of a single stretch, its own.

    ``avg_logprob`` is the mean over the tokens and end tokens of all, ``no_speech_prob`` that of the stretch that most
    likely holds speech; it ``ended`` where all did. Times of tokens are left out. Of none it is the transcript of
    silence.
    """
    if len(transcripts) == 1:
        return transcripts[0]
    lengths = [len(t.token_ids) + 1 for t in transcripts]
    log_prob = sum(t.avg_logprob * n for t, n in zip(transcripts, lengths, strict=True))
    return Transcript(
        text=" ".join(t.text for t in transcripts if t.text),
        token_ids=tuple(i for t in transcripts for i in t.token_ids),
        avg_logprob=log_prob / max(sum(lengths), 1),
        no_speech_prob=min((t.no_speech_prob for t in transcripts), default=1.0),
        ended=all(t.ended for t in transcripts),
        token_texts=tuple(text for t in transcripts for text in _set_off(t.token_texts)),
        token_probs=tuple(prob for t in transcripts for prob in t.token_probs),
    )


def _set_off(token_texts: Sequence[str]) -> list[str]:
    """Return the texts of tokens with a space before the first, so that they do not run into what stands before."""
    return [" " + text.lstrip() if i == 0 else text for i, text in enumerate(token_texts)]
