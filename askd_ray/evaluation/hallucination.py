"""Hallucination: the words that models output for clips without speech."""

from collections.abc import Sequence

from askd_ray.evaluation.tally import ModelResults, SetResults
from askd_ray.results.wer import HallucinatedText, Hallucinations, KindScores, ModelHallucinations


def score_hallucinations(kinds: Sequence[SetResults]) -> Hallucinations | None:
    """Return how many words each model outputs for the set ``non_speech``, by kind of sound; None without clips."""
    if not kinds:
        return None
    clips = sum(len(r.common.rows) for r in kinds)
    minutes = sum(r.minutes for r in kinds)
    models = dict[str, ModelHallucinations]()
    for name in kinds[0].results:
        by_kind = {r.condition: _score_kind(r.results[name]) for r in kinds}
        with_words = sum(kind["clips_with_words"] for kind in by_kind.values())
        words = sum(int(r.results[name].errors.sum()) for r in kinds)  # every word is an insertion
        models[name] = {
            "clips_with_words": with_words,
            "share_with_words": with_words / clips,
            "words": words,
            "words_per_minute": words / minutes,
            "runaways": sum(r.results[name].runaways for r in kinds),
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
