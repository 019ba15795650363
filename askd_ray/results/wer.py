"""Word error rates and other scores of hypotheses, as their record holds them.

docs/evaluation.md defines each score. Sets, models and conditions are keys by name.
"""

from typing_extensions import TypedDict  # pydantic cannot read that of typing before Python 3.12

from askd_ray.config.evaluate import Normalizer


class Rate(TypedDict):
    """A word error rate and its 95 % interval, [low, high]."""

    wer: float
    wer_ci95: list[float]


class RateDifference(TypedDict):
    """WER of a model minus WER of the baseline: below 0 the model is better.

    ``low`` and ``high`` are the 95 % interval; ``p_improvement`` is the share of bootstrap samples in which the model's
    WER is strictly lower.
    """

    value: float
    low: float
    high: float
    p_improvement: float


class Comparison(TypedDict):
    """Models on the same utterances, by name: the WER of each, and the difference of each to the baseline."""

    models: dict[str, Rate]
    against_baseline: dict[str, RateDifference]


class Bin(TypedDict):
    """The tokens with a probability in [low, high); the last bin includes 1.0.

    ``confidence`` is their mean probability, ``accuracy`` the share of correct tokens.
    """

    low: float
    high: float
    tokens: int
    confidence: float
    accuracy: float


class DurationScores(TypedDict):
    """Clips from ``low_s`` to below ``high_s`` (None: no limit). Clips of exactly 30 s are in the bucket below 30 s."""

    low_s: float
    high_s: float | None
    utterances: int
    words: int
    wer: float | None


class SpeakerScore(TypedDict):
    """The scores of one speaker."""

    speaker: str
    utterances: int
    words: int
    wer: float


class SpeakerScores(TypedDict):
    """Speakers with at least one reference word: their number, their mean WER, and the worst speakers, worst first."""

    speakers: int
    macro_wer: float
    worst: list[SpeakerScore]


class ModelScores(Rate):
    """One model on one set. None where the model or the data give no value."""

    substitutions: int
    deletions: int
    insertions: int
    n_words: int
    insertion_rate: float
    cer: float
    repeated_5grams: int
    runaways: int
    empty: int
    ece: float | None
    reliability: list[Bin]
    by_duration: list[DurationScores]
    by_speaker: SpeakerScores | None


class SetScores(TypedDict):
    """One set, clean; ``models`` and ``against_baseline`` as in every :class:`Comparison`."""

    in_domain: bool
    utterances: int
    words: int
    minutes: float
    models: dict[str, ModelScores]
    against_baseline: dict[str, RateDifference]


class DomainScores(TypedDict):
    """Several sets, clean: ``macro`` is the mean of the sets' WERs, ``pooled`` the WER over all words."""

    sets: list[str]
    utterances: int
    words: int
    macro: Comparison
    pooled: Comparison


class ConditionScores(Comparison):
    """Sets with changed audio, pooled; ``clean_wer`` is the WER of the same utterances unchanged, by model."""

    sets: list[str]
    utterances: int
    words: int
    clean_wer: dict[str, float]


class HallucinatedText(TypedDict):
    """A model's text for a clip without speech, not normalised."""

    id: str
    text: str


class KindScores(TypedDict):
    """Clips of one kind of sound; ``texts`` are the outputs with words."""

    clips: int
    clips_with_words: int
    texts: list[HallucinatedText]


class ModelHallucinations(TypedDict):
    """One model's output for the clips without speech."""

    clips_with_words: int
    share_with_words: float
    words: int
    words_per_minute: float
    runaways: int
    by_kind: dict[str, KindScores]


class Hallucinations(TypedDict):
    """The set ``non_speech``, clips of silence, noise and music."""

    clips: int
    minutes: float
    models: dict[str, ModelHallucinations]


class PathScores(TypedDict):
    """The scores of the hypotheses of one decoding path. The baseline is the first model."""

    baseline: str
    normalizer: Normalizer
    models: list[str]
    sets: dict[str, SetScores]
    in_domain: DomainScores | None
    out_of_domain: DomainScores | None
    conditions: dict[str, ConditionScores]
    non_speech: Hallucinations | None


class Scores(PathScores):
    """The scores on the served path, and beside them those of the raw transcripts of the models that return them.

    ``raw`` is None where the baseline has no raw transcripts.
    """

    raw: PathScores | None


def domains(scores: PathScores) -> dict[str, DomainScores]:
    """Return the scores ``in domain`` and ``out of domain``, each if it has sets."""
    both = {"in domain": scores["in_domain"], "out of domain": scores["out_of_domain"]}
    return {place: domain for place, domain in both.items() if domain is not None}


def by_path(scores: Scores) -> dict[str, PathScores]:
    """Return the scores of each decoding path, ``served`` first."""
    raw = scores["raw"]
    return {"served": scores} if raw is None else {"served": scores, "raw": raw}
