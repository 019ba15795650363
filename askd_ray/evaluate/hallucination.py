"""Hallucination: the words that models hear where nobody speaks."""

from collections.abc import Sequence
from typing import TypedDict

from askd_ray.evaluate.tally import ModelResults, SetResults


class HallucinatedText(TypedDict):
    """What was heard in a clip in which nobody speaks, as the model wrote it."""

    id: str
    text: str


class KindScores(TypedDict):
    """Clips of one kind of sound; ``texts`` are those of the clips with words."""

    clips: int
    clips_with_words: int
    texts: list[HallucinatedText]


class ModelHallucinations(TypedDict):
    """What one model heard where nobody speaks."""

    clips_with_words: int
    share_with_words: float
    words: int
    words_per_minute: float
    by_kind: dict[str, KindScores]


class Hallucinations(TypedDict):
    """The set ``non_speech``, clips of silence, noise and music."""

    clips: int
    minutes: float
    models: dict[str, ModelHallucinations]


def score_hallucinations(kinds: Sequence[SetResults]) -> Hallucinations | None:
    """Return how much each model heard in the clips of the set ``non_speech``, a group a kind; None without any."""
    if not kinds:
        return None
    clips = sum(len(a.common.rows) for a in kinds)
    minutes = sum(a.minutes for a in kinds)
    models = dict[str, ModelHallucinations]()
    for name in kinds[0].results:
        by_kind = {a.condition: _score_kind(a.results[name]) for a in kinds}
        with_words = sum(kind["clips_with_words"] for kind in by_kind.values())
        words = sum(int(a.results[name].errors.sum()) for a in kinds)  # each of them an insertion
        models[name] = {
            "clips_with_words": with_words,
            "share_with_words": with_words / clips,
            "words": words,
            "words_per_minute": words / minutes,
            "by_kind": by_kind,
        }
    return {"clips": clips, "minutes": minutes, "models": models}


def _score_kind(results: ModelResults) -> KindScores:
    texts: list[HallucinatedText] = [
        {"id": row.id, "text": row.hypothesis}
        for row, hypothesis in zip(results.rows, results.hypotheses, strict=True)
        if hypothesis
    ]
    return {"clips": len(results.rows), "clips_with_words": len(texts), "texts": texts}
