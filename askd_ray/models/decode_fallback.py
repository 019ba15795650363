"""Decode again when a transcript looks hallucinated: a loop, a text without an end, or an improbable text.

The thresholds are those of openai/whisper (transcribe.py). The fallback differs: Whisper samples tokens at rising
temperatures, so the same audio gives another text each time. Here the second and third try use beam search, and the
text depends on the audio alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import DecodingWindow
from askd_ray.models.transcript import Decoding, Transcript, UnitPath
from askd_ray.text.ngrams import compression_ratio

MAX_COMPRESSION_RATIO = 2.4  # above it, a text repeats itself
MIN_AVG_LOGPROB = -1.0  # nats per token; below it, a text is doubtful
NO_SPEECH_PROB = 0.6
MAX_CHARS_PER_S = 30.0  # in any language; fast speakers reach 25
MIN_TOKENS_PER_S = 1.5  # of speech; the slowest speakers reach 2, most speakers 4
_MIN_SPEECH_S = 4.0  # shorter speech may be a single word
_BEAM_SIZE, _NO_REPEAT_NGRAM_SIZE = 5, 3  # of the second and the third try


class DecodingEngine(Protocol):
    """Transcribes clips of up to 30 s with given decoding settings, as :class:`askd_ray.models.engine.Engine` does."""

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Return the transcript of each clip."""
        ...


class PathReader(Protocol):
    """Reads paths of units, which are joined where clips are adjacent: an engine without a decoder."""

    def read_paths(self, waveforms: Sequence[Waveform], language: str | None = "en") -> list[UnitPath]:
        """Return the path through each clip of up to 30 s, one unit for each position of the clip."""
        ...


class WindowedEngine(DecodingEngine, Protocol):
    """An engine that decodes clips in windows: :class:`~askd_ray.models.engine.Engine` for students with a decoder,
    :class:`~askd_ray.models.ctc_engine.CtcEngine` for CTC students.
    """

    window: DecodingWindow | None
    """The windows of clips; None means 30 s. It may be changed between calls."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the model."""
        ...

    @property
    def path_reader(self) -> PathReader | None:
        """What reads paths of units; None for an engine with a decoder, which decodes whole clips only."""
        ...

    @property
    def mixes_windows(self) -> bool:
        """Whether the engine decodes clips of different windows together faster than one after the other."""
        ...

    def fit_prompt(self, prompt: str) -> str:
        """Return the part of a prompt that the model reads."""
        ...

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of a clip's window, in samples."""
        ...


def has_too_many_characters(text: str, clip_s: float) -> bool:
    """Whether a text has more characters than anybody can say in the clip."""
    return len(text) > MAX_CHARS_PER_S * (clip_s + 1.0)


def is_loop(transcript: Transcript, clip_s: float) -> bool:
    """Whether a transcript has no end token, or more characters than anybody can say in the clip."""
    return not transcript.ended or has_too_many_characters(transcript.text, clip_s)


def repeats_itself(transcript: Transcript) -> bool:
    """Whether a text compresses so well that it must contain repetitions; the speaker may have repeated the words."""
    return compression_ratio(transcript.text) > MAX_COMPRESSION_RATIO


def is_doubtful(transcript: Transcript, clip_s: float) -> bool:
    """Whether the clip of a transcript must be decoded again."""
    return is_loop(transcript, clip_s) or repeats_itself(transcript) or transcript.avg_logprob < MIN_AVG_LOGPROB


def stops_early(transcript: Transcript, speech_s: float) -> bool:
    """Whether a text is too short for its speech: a model may stop after the first of several sentences."""
    return speech_s >= _MIN_SPEECH_S and len(transcript.token_ids) < MIN_TOKENS_PER_S * speech_s


def transcribe_with_fallback(
    engine: DecodingEngine, waveforms: Sequence[Waveform], language: str | None, decoding: Decoding
) -> list[Transcript]:
    """Transcribe clips of at most 30 s, and decode doubtful clips again (:func:`decode_doubtful_again`).

    With a temperature, tokens are sampled and there is one try.
    """
    decoding = replace(decoding, no_speech=decoding.no_speech or decoding.temperature > 0.0)
    transcripts = engine.transcribe(waveforms, language, decoding)
    if decoding.temperature:
        return [_silence(t) if is_hallucinated(t) else t for t in transcripts]
    return decode_doubtful_again(engine, waveforms, transcripts, language, decoding)


def decode_doubtful_again(
    engine: DecodingEngine,
    waveforms: Sequence[Waveform],
    transcripts: Sequence[Transcript],
    language: str | None,
    decoding: Decoding,
) -> list[Transcript]:
    """Decode clips with doubtful transcripts again with a beam, then loops without repeated trigrams.

    ``transcripts`` are those of the clips with ``decoding``, which has no temperature.

    The best transcript of a clip has the highest average log-probability of those that are not a loop. A speaker may
    repeat a sentence: if repeated trigrams were always forbidden, the model would hallucinate from the second "All
    circuits are busy now." on. So the third try runs only where the first was a loop, and there a text that repeats
    itself is rejected too. The text is empty where it is improbable and the model detects no speech, which is estimated
    only for doubtful clips. A clip's text does not depend on the other clips.
    """
    best = list(transcripts)
    clips_s = [duration_s(waveform) for waveform in waveforms]
    loops = [is_loop(t, clip_s) for t, clip_s in zip(transcripts, clips_s, strict=True)]

    def is_bad(i: int, transcript: Transcript) -> bool:
        return is_loop(transcript, clips_s[i]) or (loops[i] and repeats_itself(transcript))

    def decode_again(clips: Sequence[int], settings: Decoding) -> None:
        retries = engine.transcribe([waveforms[i] for i in clips], language, settings) if clips else []
        for i, retry in zip(clips, retries, strict=True):
            better = max(best[i], retry, key=lambda t: (not is_bad(i, t), t.avg_logprob))
            best[i] = replace(better, no_speech_prob=retry.no_speech_prob)

    beam = replace(decoding, beam_size=_BEAM_SIZE, no_speech=True)
    decode_again([i for i, t in enumerate(best) if is_doubtful(t, clips_s[i])], beam)
    decode_again(
        [i for i, t in enumerate(best) if loops[i] and is_bad(i, t)],
        replace(beam, no_repeat_ngram_size=_NO_REPEAT_NGRAM_SIZE),
    )
    return [_silence(t) if is_hallucinated(t) else t for t in best]


def is_hallucinated(transcript: Transcript) -> bool:
    """Whether the text is improbable and the model detects no speech."""
    return transcript.avg_logprob < MIN_AVG_LOGPROB and (transcript.no_speech_prob or 0.0) > NO_SPEECH_PROB


def _silence(transcript: Transcript) -> Transcript:
    empty = Transcript("", (), transcript.avg_logprob, transcript.no_speech_prob)
    return replace(empty, language=transcript.language)
