"""What an engine takes and returns: decoding options, and transcripts."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["transcribe", "translate"]
"""``translate`` always translates into English."""


@dataclass(frozen=True)
class Transcript:
    """The transcript of a clip.

    ``token_ids`` are without prompt and end token; ``avg_logprob`` is the mean log-probability of the tokens and the
    end token, in nats. ``ended`` is False if decoding reached its token limit before the model wrote the end token.
    ``language`` is the given or the detected language.

    With :attr:`Decoding.no_speech`, ``no_speech_prob`` is the model's estimate, which a student may have unlearnt.

    With :attr:`Decoding.confidence`, ``token_texts`` has the text of each token, ``token_probs`` its probability, and
    ``token_times`` its start, in seconds from the clip's start; one additional time is the end of the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float | None = None
    ended: bool = True
    token_texts: tuple[str, ...] = ()
    token_probs: tuple[float, ...] = ()
    token_times: tuple[float, ...] = ()
    language: str = "en"


@dataclass(frozen=True)
class UnitPath:
    """The most probable path of CTC through a clip: the bytes of the unit at each position, ``b""`` for the blank.

    A position lasts 20 ms. Successive positions with the same unit write it once, and different units have different
    bytes; so the paths of adjacent pieces of audio, joined, are a path that writes one text.
    """

    units: tuple[bytes, ...]
    language: str = "en"


@dataclass(frozen=True)
class Decoding:
    """Decoding options: ``beam_size`` 1 is greedy; ``prompt`` is the text before the transcript.

    ``confidence`` also returns the probability and time of each token: the decoder reads the text once more, without
    timestamps, and the cross-attention of its alignment heads gives the times (dynamic time warping, as in
    openai/whisper's timing.py). ``no_speech`` also estimates whether the clip has no speech: one more projection to the
    vocabulary, which takes most of a token's time. A ``temperature`` above 0 samples tokens. A sequence of
    ``no_repeat_ngram_size`` tokens may occur only once in a text; 0 disables the rule.
    """

    beam_size: int = 1
    timestamps: bool = False
    prompt: str = ""
    confidence: bool = False
    no_speech: bool = False
    task: Task = "transcribe"
    temperature: float = 0.0
    no_repeat_ngram_size: int = 0


GREEDY = Decoding()
"""The default of the service and of evaluations."""
