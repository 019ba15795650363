"""What keeps a model from inventing text: loops, runaways and wild guesses are decoded again, otherwise.

openai/whisper's thresholds (transcribe.py), but not its way out: Whisper draws tokens at rising temperatures, so that
the same audio gives another text each time. Here the second and third try are searched for too, and the answer depends
on the audio alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.models.engine import Decoding, Transcript
from askd_ray.text.ngrams import compression_ratio

MAX_COMPRESSION_RATIO = 2.4  # beyond it a text repeats itself
MIN_AVG_LOGPROB = -1.0  # nats a token; below it a text is guessed
NO_SPEECH = 0.6
MAX_CHARS_PER_S = 30.0  # in any language; people who speak fast have 25
MIN_TOKENS_PER_S = 1.5  # of speech; the slowest speakers have two, people have four
_MIN_SPEECH_S = 4.0  # in less of it, one word may be all
_BEAM, _UNREPEATED = 5, 3  # of the tries after the first


class EngineLike(Protocol):
    """What decodes clips of up to 30 s; :class:`askd_ray.models.engine.Engine` is the real one."""

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Return the transcript of each clip."""
        ...


def is_loop(transcript: Transcript, clip_s: float) -> bool:
    """Whether a text cannot be what is said in a clip: the model could not end it, or nobody speaks that fast."""
    return not transcript.ended or len(transcript.text) > MAX_CHARS_PER_S * (clip_s + 1.0)


def repeats_itself(transcript: Transcript) -> bool:
    """Whether a text compresses so well that it says things again; that may be what somebody said."""
    return compression_ratio(transcript.text) > MAX_COMPRESSION_RATIO


def is_doubtful(transcript: Transcript, clip_s: float) -> bool:
    """Whether a transcript is to be decoded again."""
    return is_loop(transcript, clip_s) or repeats_itself(transcript) or transcript.avg_logprob < MIN_AVG_LOGPROB


def stops_early(transcript: Transcript, speech_s: float) -> bool:
    """Whether a text is so short that words must be missing: a model may end after the first of several sentences."""
    return speech_s >= _MIN_SPEECH_S and len(transcript.token_ids) < MIN_TOKENS_PER_S * speech_s


def transcribe_with_fallback(
    engine: EngineLike, waveforms: Sequence[Waveform], language: str | None, decoding: Decoding
) -> list[Transcript]:
    """Transcribe clips of at most 30 s; doubtful ones again with a beam, then loops without repeated trigrams.

    The best of a clip's transcripts is the one that the model finds most probable, a token, among those that are no
    loop. What repeats itself may have been said so: without repeated trigrams the text of "All circuits are busy now.",
    said three times, is invented from the second on. So it is forbidden only where the first try was a loop, and there
    a text that still repeats itself is not believed either. The text is empty where it is improbable and the model
    hears no speech. A clip's text does not depend on its neighbours. With a temperature tokens are drawn, and there is
    one try.
    """
    heard = engine.transcribe(waveforms, language, decoding)
    if decoding.temperature:
        return [_silence(t) if is_guess(t) else t for t in heard]
    clips_s = [duration_s(waveform) for waveform in waveforms]
    loops = [is_loop(t, clip_s) for t, clip_s in zip(heard, clips_s, strict=True)]

    def is_bad(i: int, transcript: Transcript) -> bool:
        return is_loop(transcript, clips_s[i]) or (loops[i] and repeats_itself(transcript))

    def try_again(clips: Sequence[int], again: Decoding) -> None:
        others = engine.transcribe([waveforms[i] for i in clips], language, again) if clips else []
        for i, other in zip(clips, others, strict=True):
            heard[i] = max(heard[i], other, key=lambda t: (not is_bad(i, t), t.avg_logprob))

    again = replace(decoding, beam_size=_BEAM)
    try_again([i for i, t in enumerate(heard) if is_doubtful(t, clips_s[i])], again)
    try_again(
        [i for i, t in enumerate(heard) if loops[i] and is_bad(i, t)], replace(again, no_repeat_ngram_size=_UNREPEATED)
    )
    return [_silence(t) if is_guess(t) else t for t in heard]


def is_guess(transcript: Transcript) -> bool:
    """Whether the text is improbable, and the model hears no speech."""
    return transcript.avg_logprob < MIN_AVG_LOGPROB and transcript.no_speech_prob > NO_SPEECH


def _silence(transcript: Transcript) -> Transcript:
    empty = Transcript("", (), transcript.avg_logprob, transcript.no_speech_prob)
    return replace(empty, language=transcript.language)
