"""Filter pseudo-labels: by their WER if there is a reference, otherwise by signs of hallucinated text."""

from collections.abc import Sequence

from askd_ray.config.targets import Targets
from askd_ray.data.schema import Utterance
from askd_ray.models.transcript import Transcript
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.ngrams import compression_ratio
from askd_ray.text.normalize import UNSPACED, normalizer

LONGEST_PHRASE = 5
"""The maximum number of words of a phrase whose repeats are counted."""


def failed_filter(targets: Targets, utterance: Utterance, transcript: Transcript) -> str:
    """Return the name of the first filter that a pseudo-label does not pass, or "" when it passes all.

    ``no end``: decoding reached its length limit, so the text is cut. The word error rate comes from Distil-Whisper
    (arXiv 2311.00430), the mean log-probability and the compression ratio from openai/whisper's ``transcribe.py``.
    """
    if not transcript.ended:
        return "no end"
    words = _words(transcript.text, utterance.language)
    if utterance.text and targets.max_wer is not None:
        reference = _words(utterance.text, utterance.language)
        passes = {"max_wer": _word_error_rate(reference, words) <= targets.max_wer}
    else:
        passes = _without_reference(targets, utterance.duration_s, transcript, words)
    return next((name for name, passed in passes.items() if not passed), "")


def _without_reference(
    targets: Targets, duration_s: float, transcript: Transcript, words: list[str]
) -> dict[str, bool]:
    min_rate, max_rate = targets.chars_per_s or (0.0, float("inf"))
    ratio = targets.max_compression_ratio
    return {
        "min_mean_log_prob": targets.min_mean_log_prob is None or transcript.avg_logprob >= targets.min_mean_log_prob,
        "max_compression_ratio": ratio is None or compression_ratio(transcript.text) <= ratio,
        "max_repeats": targets.max_repeats is None or max_repeats_in(words) <= targets.max_repeats,
        "chars_per_s": min_rate <= len(transcript.text) / duration_s <= max_rate,
    }


def max_repeats_in(words: Sequence[str]) -> int:
    """Return the maximum number of immediate repeats of any phrase of one to five words.

    "no no no" has 2 repeats (of "no"), "press one press one" has 1.
    """
    max_repeats = 0
    for n in range(1, LONGEST_PHRASE + 1):
        n_equal = 0  # consecutive words that equal the word n positions before
        for word, before in zip(words[n:], words, strict=False):
            n_equal = n_equal + 1 if word == before else 0
            max_repeats = max(max_repeats, n_equal // n)
    return max_repeats


def matching_part(reference: str, transcript: str, language: str) -> str:
    """Return the part of a reference that has the words of a transcript, or "" if there is none.

    Words are compared one by one after normalisation: case, punctuation and digits for number words do not matter.
    """
    normal = normalizer(language)
    units = _units(reference, language)
    spoken = [(word, unit) for unit in units if (word := normal(unit).strip())]  # punctuation between words stays out
    words = [word for unit in _units(transcript, language) if (word := normal(unit).strip())]
    for start in range(len(spoken) - len(words) + 1):
        if words and [word for word, _ in spoken[start : start + len(words)]] == words:
            space = "" if language in UNSPACED else " "
            return space.join(unit for _, unit in spoken[start : start + len(words)])
    return ""


def _units(text: str, language: str) -> list[str]:
    """Return the words of a text as written; in a language without spaces between words, the characters."""
    return list("".join(text.split())) if language in UNSPACED else text.split()


def _words(text: str, language: str) -> list[str]:
    """Return the normalised words; in a language without spaces between words, the characters."""
    normal = normalizer(language)(text)
    return list("".join(normal.split())) if language in UNSPACED else normal.split()


def _word_error_rate(reference: list[str], words: list[str]) -> float:
    if not reference:  # a reference of punctuation only: every word is an error
        return float("inf") if words else 0.0
    return count_word_errors([" ".join(reference)], [" ".join(words)]).rate
