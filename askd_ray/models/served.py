"""The served path: clips of any length to the transcripts that the service returns for them.

The service and the evaluation share it, so that what is measured is what is served: speech detection, chunks, a second
decoding of doubtful transcripts (:mod:`askd_ray.models.decode_fallback`), and halves of a chunk whose text stops early.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from askd_ray.audio.chunking import MAX_CHUNK_S, halves, split_into_chunks
from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import Span, Vad
from askd_ray.models.decode_fallback import DecodingEngine, decode_doubtful_again, stops_early
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.normalize import UNSPACED

ClipPart = tuple[int, Span]
"""The number of a clip, and a part of it."""


def is_one_chunk(waveform: Waveform) -> bool:
    """Whether a clip is at most one chunk, so that it can be transcribed while the VAD runs."""
    return len(waveform) <= samples_of(MAX_CHUNK_S)


def halves_with_missing_words(
    waveform: Waveform, chunk: Span, speech: Sequence[Span], transcript: Transcript
) -> tuple[Span, ...]:
    """Return the halves of a chunk to transcribe too, where words must be missing in its transcript; or nothing."""
    spans = [s for s in speech if s.start < chunk.end and s.end > chunk.start]
    speech_s = sum(min(s.end, chunk.end) - max(s.start, chunk.start) for s in spans) / SAMPLE_RATE_HZ
    return halves(waveform, chunk, spans) if stops_early(transcript, speech_s) else ()


def halves_are_better(of_halves: Sequence[Transcript], transcript: Transcript) -> bool:
    """Whether the transcripts of a chunk's halves have more tokens than that of the chunk."""
    return sum(len(t.token_ids) for t in of_halves) > len(transcript.token_ids)


def transcribe_as_served(
    engine: DecodingEngine, vad: Vad, waveforms: Sequence[Waveform], language: str, decoding: Decoding = GREEDY
) -> list[Transcript]:
    """Return the transcript of each clip, of any length, as the service does. The VAD runs beside the engine.

    A clip in which the VAD finds no speech has an empty text. A clip's text does not depend on the other clips.

    Raises :class:`AskdError` for a language that the model does not know.
    """
    batch = _Batch(engine, waveforms, language, decoding)
    with ThreadPoolExecutor(1) as thread:
        detection = thread.submit(lambda: [vad.speech(waveform) for waveform in waveforms])
        greedy = batch.greedy([(i, Span(0, len(w))) for i, w in enumerate(waveforms) if is_one_chunk(w)])
    return batch.served(detection.result(), greedy)


def transcribe_raw_and_served(
    engine: DecodingEngine, vad: Vad, waveforms: Sequence[Waveform], language: str, decoding: Decoding = GREEDY
) -> tuple[list[Transcript], list[Transcript]]:
    """Return the raw and the served transcript of each clip; what both decode alike is decoded once.

    Raw: the clip in one window, decoded once and kept whatever the VAD finds; a clip over 30 s is decoded in the chunks
    of the served path. Served: as :func:`transcribe_as_served`.

    Raises :class:`AskdError` for a language that the model does not know.
    """
    batch = _Batch(engine, waveforms, language, decoding)
    speech = [vad.speech(waveform) for waveform in waveforms]
    raw_parts = [
        [Span(0, len(w))] if len(w) <= PADDED_SAMPLES else split_into_chunks(w, spans)
        for w, spans in zip(waveforms, speech, strict=True)
    ]
    greedy = batch.greedy([(i, part) for i, parts in enumerate(raw_parts) for part in parts])
    raw = [join_transcripts([greedy[i, part] for part in parts]) for i, parts in enumerate(raw_parts)]
    return raw, batch.served(speech, greedy)


def join_transcripts(transcripts: Sequence[Transcript]) -> Transcript:
    """Join the transcripts of consecutive chunks in one language; a single transcript is returned as it is.

    ``avg_logprob`` is the mean over all tokens and end tokens, and ``ended`` is True if it is True of all chunks. Token
    times and ``no_speech_prob`` are left out. Without chunks, the result is the transcript of silence.
    """
    if len(transcripts) == 1:
        return transcripts[0]
    language = transcripts[0].language if transcripts else "en"
    space = "" if language in UNSPACED else " "
    lengths = [len(t.token_ids) + 1 for t in transcripts]
    log_prob = sum(t.avg_logprob * n for t, n in zip(transcripts, lengths, strict=True))
    return Transcript(
        text=space.join(t.text for t in transcripts if t.text),
        token_ids=tuple(i for t in transcripts for i in t.token_ids),
        avg_logprob=log_prob / max(sum(lengths), 1),
        ended=all(t.ended for t in transcripts),
        token_texts=tuple(text for t in transcripts for text in _after(space, t.token_texts)),
        token_probs=tuple(prob for t in transcripts for prob in t.token_probs),
        language=language,
    )


def _after(space: str, token_texts: Sequence[str]) -> list[str]:
    """Return the texts of tokens with ``space`` before the first, to separate them from the previous chunk."""
    return [space + text.lstrip() if i == 0 else text for i, text in enumerate(token_texts)]


@dataclass(frozen=True)
class _Batch:
    """Clips of one language, decoded with the same options."""

    engine: DecodingEngine
    waveforms: Sequence[Waveform]
    language: str
    decoding: Decoding

    def waveform(self, part: ClipPart) -> Waveform:
        number, span = part
        return self.waveforms[number][span.start : span.end]

    def greedy(self, parts: Sequence[ClipPart]) -> dict[ClipPart, Transcript]:
        """Decode parts of clips once."""
        waveforms = [self.waveform(part) for part in parts]
        transcripts = self.engine.transcribe(waveforms, self.language, self.decoding) if parts else []
        return dict(zip(parts, transcripts, strict=True))

    def served(self, speech: Sequence[Sequence[Span]], greedy: Mapping[ClipPart, Transcript]) -> list[Transcript]:
        """Return the served transcript of each clip from its spans of speech; ``greedy`` parts are known."""
        chunks = [split_into_chunks(w, spans) for w, spans in zip(self.waveforms, speech, strict=True)]
        parts = [(i, chunk) for i, of_clip in enumerate(chunks) for chunk in of_clip]
        transcribed = iter(self._with_halves(parts, speech, greedy))
        return [join_transcripts([t for _ in of_clip for t in next(transcribed)]) for of_clip in chunks]

    def _with_halves(
        self, parts: Sequence[ClipPart], speech: Sequence[Sequence[Span]], greedy: Mapping[ClipPart, Transcript]
    ) -> list[list[Transcript]]:
        """Return the transcript of each part, or those of its halves where words must be missing."""
        if not parts:
            return []
        greedy = {**self.greedy([part for part in parts if part not in greedy]), **greedy}
        firsts = [greedy[part] for part in parts]
        waveforms = [self.waveform(part) for part in parts]
        transcripts = decode_doubtful_again(self.engine, waveforms, firsts, self.language, self.decoding)
        pairs = [
            halves_with_missing_words(self.waveforms[i], span, speech[i], transcript)
            for (i, span), transcript in zip(parts, transcripts, strict=True)
        ]
        all_halves = [(i, half) for (i, _), pair in zip(parts, pairs, strict=True) for half in pair]
        transcribed = iter(self._with_halves(all_halves, speech, greedy))
        results = list[list[Transcript]]()
        for transcript, pair in zip(transcripts, pairs, strict=True):
            of_halves = [t for _ in pair for t in next(transcribed)]
            results.append(of_halves if halves_are_better(of_halves, transcript) else [transcript])
        return results
