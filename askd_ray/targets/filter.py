"""Which pseudo-labels are kept: against the reference where there is one, else by what gives invented text away."""

from collections.abc import Sequence

from askd_ray.config.targets import Targets
from askd_ray.data.schema import Utterance
from askd_ray.models.engine import Transcript
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.ngrams import compression_ratio
from askd_ray.text.normalize import UNSPACED, normalizer

LONGEST_PHRASE = 5
"""Words of the longest phrase whose repeats are counted."""


def why_dropped(targets: Targets, utterance: Utterance, heard: Transcript) -> str:
    """Return the name of the first filter that a pseudo-label does not pass, or "" when it is kept.

    ``no end`` is the reason for a decoding that ran into the limit on its length: it is cut, and its end is not the
    teacher's. Distil-Whisper (arXiv 2311.00430) has the word error rate; openai/whisper's ``transcribe.py`` has the
    mean log-probability and the compression ratio.
    """
    if not heard.ended:
        return "no end"
    words = _words(heard.text, utterance.language)
    if utterance.text:
        reference = _words(utterance.text, utterance.language)
        passes = {"max_wer": targets.max_wer is None or _word_error_rate(reference, words) <= targets.max_wer}
    else:
        passes = _without_reference(targets, utterance.duration_s, heard, words)
    return next((name for name, passed in passes.items() if not passed), "")


def _without_reference(targets: Targets, duration_s: float, heard: Transcript, words: list[str]) -> dict[str, bool]:
    least, most = targets.chars_per_s or (0.0, float("inf"))
    ratio = targets.max_compression_ratio
    return {
        "min_mean_log_prob": targets.min_mean_log_prob is None or heard.avg_logprob >= targets.min_mean_log_prob,
        "max_compression_ratio": ratio is None or compression_ratio(heard.text) <= ratio,
        "max_repeats": targets.max_repeats is None or max_repeats_in(words) <= targets.max_repeats,
        "chars_per_s": least <= len(heard.text) / duration_s <= most,
    }


def max_repeats_in(words: Sequence[str]) -> int:
    """Return how often, at most, a phrase of one to five words stands again right behind itself.

    "no no no" has 2 repeats (of "no"), "press one press one" has 1.
    """
    most = 0
    for n in range(1, LONGEST_PHRASE + 1):
        alike = 0  # words in a row that are the same as the one n before
        for word, before in zip(words[n:], words, strict=False):
            alike = alike + 1 if word == before else 0
            most = max(most, alike // n)
    return most


def _words(text: str, language: str) -> list[str]:
    """Return the normalised words; characters, in a language that does not part its words."""
    normal = normalizer(language)(text)
    return list("".join(normal.split())) if language in UNSPACED else normal.split()


def _word_error_rate(reference: list[str], words: list[str]) -> float:
    if not reference:  # a reference of punctuation alone: any word is one too many
        return float("inf") if words else 0.0
    return count_word_errors([" ".join(reference)], [" ".join(words)]).rate
