"""What keeps a model from inventing text: loops, runaways and wild guesses are decoded again, otherwise.

openai/whisper's thresholds (transcribe.py), but not its way out: Whisper draws tokens at rising temperatures, so that
the same audio gives another text each time. Here the second and third try are searched for too, and the answer depends
on the audio alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from askd_ray.audio.decode import Waveform
from askd_ray.models.engine import Decoding, Transcript
from askd_ray.text.ngrams import compression_ratio

MOST_COMPRESSION = 2.4  # beyond it a text repeats itself
LEAST_LOGPROB = -1.0  # nats a token; below it a text is guessed
NO_SPEECH = 0.6
LEAST_TOKENS_PER_S = 1.5  # of speech; the slowest speakers have two, people have four
_LEAST_SPEECH_S = 4.0  # in less of it, one word may be all
_BEAM, _UNREPEATED = 5, 3  # of the tries after the first


class Listens(Protocol):
    """What decodes clips of up to 30 s; :class:`askd_ray.models.engine.Engine` is the real one."""

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Return the transcript of each clip."""
        ...


def is_loop(transcript: Transcript) -> bool:
    """Whether the text goes round in circles, or the model could not end it."""
    return not transcript.ended or compression_ratio(transcript.text) > MOST_COMPRESSION


def is_doubtful(transcript: Transcript) -> bool:
    """Whether a transcript is to be decoded again."""
    return is_loop(transcript) or transcript.avg_logprob < LEAST_LOGPROB


def stops_early(transcript: Transcript, speech_s: float) -> bool:
    """Whether a text is so short that words must be missing: a model may end after the first of several sentences."""
    return speech_s >= _LEAST_SPEECH_S and len(transcript.token_ids) < LEAST_TOKENS_PER_S * speech_s


def transcribe_guarded(
    engine: Listens, waveforms: Sequence[Waveform], language: str | None, decoding: Decoding
) -> list[Transcript]:
    """Transcribe clips of at most 30 s; doubtful ones a second time with a beam, a third without repeated trigrams.

    The best of a clip's transcripts is that without a loop, and among those the most probable. It is empty where it is
    improbable and the model hears no speech. A clip's text does not depend on its neighbours. With a temperature tokens
    are drawn, and there is one try.
    """
    heard = engine.transcribe(waveforms, language, decoding)
    tries = [] if decoding.temperature else [replace(decoding, beam_size=_BEAM)]
    tries += [replace(its, unrepeated=_UNREPEATED) for its in tries]
    for again in tries:
        doubtful = [i for i, transcript in enumerate(heard) if is_doubtful(transcript)]
        if not doubtful:
            break
        for i, other in zip(
            doubtful, engine.transcribe([waveforms[i] for i in doubtful], language, again), strict=True
        ):
            heard[i] = max(heard[i], other, key=lambda t: (not is_loop(t), t.avg_logprob))
    return [_silence(t) if is_guess(t) else t for t in heard]


def is_guess(transcript: Transcript) -> bool:
    """Whether the text is improbable, and the model hears no speech."""
    return transcript.avg_logprob < LEAST_LOGPROB and transcript.no_speech_prob > NO_SPEECH


def _silence(transcript: Transcript) -> Transcript:
    empty = Transcript("", (), transcript.avg_logprob, transcript.no_speech_prob)
    return replace(empty, language=transcript.language)
