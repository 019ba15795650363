"""Computes scores from hypotheses, as docs/evaluation.md defines them."""

import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from askd_ray.config.evaluate import Normalizer
from askd_ray.errors import AskdError
from askd_ray.evaluation.calibration import expected_calibration_error, reliability
from askd_ray.evaluation.hallucination import score_hallucinations
from askd_ray.evaluation.hypotheses import CLEAN, NON_SPEECH, RAW, SERVED, Hypothesis
from askd_ray.evaluation.significance import Array, compare
from askd_ray.evaluation.tally import ModelResults, SetResults, tally
from askd_ray.results.wer import (
    ConditionScores,
    DomainScores,
    DurationScores,
    ModelScores,
    PathScores,
    Rate,
    Scores,
    SetScores,
    SpeakerScore,
    SpeakerScores,
)
from askd_ray.text.error_rate import count_character_errors
from askd_ray.text.ngrams import repeated_ngrams

DURATIONS_S = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0)
N_WORST_SPEAKERS = 5


def score(rows: Sequence[Hypothesis], baseline: str, normalizer: Normalizer = "whisper") -> Scores:
    """Return the scores of all models on both decoding paths, and their differences to the model ``baseline``.

    The order of the rows does not matter. Intervals are reproducible.

    Raises :class:`AskdError` as :func:`score_path` does.
    """
    by_path = {path: [row for row in rows if row.path == path] for path in (SERVED, RAW)}
    has_raw = any(row.model == baseline for row in by_path[RAW])
    return {
        **score_path(by_path[SERVED], baseline, normalizer),
        "raw": score_path(by_path[RAW], baseline, normalizer) if has_raw else None,
    }


def score_path(rows: Sequence[Hypothesis], baseline: str, normalizer: Normalizer = "whisper") -> PathScores:
    """Return the scores of rows of one decoding path.

    Raises :class:`AskdError` when the models cannot be compared (see :func:`askd_ray.evaluation.tally.tally`), and for
    an utterance that has a row under a condition but no clean row.
    """
    results = tally(rows, baseline, normalizer)
    clean = {r.set: r for r in results if r.condition == CLEAN and r.set != NON_SPEECH}
    rates = {name: r.bootstrap.rates for name, r in clean.items()}
    changed: dict[str, list[SetResults]] = {}
    for set_results in results:
        if set_results.set != NON_SPEECH and set_results.condition != CLEAN:
            changed.setdefault(set_results.condition, []).append(set_results)
    return {
        "baseline": baseline,
        "normalizer": normalizer,
        "models": list(results[0].results),
        "sets": {name: _score_set(r, rates[name], baseline) for name, r in clean.items()},
        "in_domain": _score_domain([r for r in clean.values() if r.in_domain], rates, baseline),
        "out_of_domain": _score_domain([r for r in clean.values() if not r.in_domain], rates, baseline),
        "conditions": {name: _score_condition(changed[name], clean, baseline) for name in sorted(changed, key=_level)},
        "non_speech": score_hallucinations([r for r in results if r.set == NON_SPEECH]),
    }


def _score_set(set_results: SetResults, rates: Array, baseline: str) -> SetScores:
    compared = compare(rates, list(set_results.results), baseline)
    return {
        "in_domain": set_results.in_domain,
        "utterances": len(set_results.common.rows),
        "words": set_results.n_words,
        "minutes": set_results.minutes,
        "models": {
            name: _score_model(results, compared["models"][name]) for name, results in set_results.results.items()
        },
        "against_baseline": compared["against_baseline"],
    }


def _score_model(results: ModelResults, rate: Rate) -> ModelScores:
    total = reduce(operator.add, results.counts)
    texts = list(zip(results.references, results.hypotheses, strict=True))
    bins = reliability(results.rows)
    return {
        **rate,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "n_words": total.n_reference,
        "insertion_rate": total.insertions / total.n_reference,
        "cer": count_character_errors(results.references, results.hypotheses).rate,
        "repeated_5grams": sum(repeated_ngrams(reference, hypothesis) for reference, hypothesis in texts),
        "runaways": results.runaways,
        "empty": sum(bool(reference) and not hypothesis for reference, hypothesis in texts),
        "ece": expected_calibration_error(bins),
        "reliability": bins,
        "by_duration": _by_duration(results),
        "by_speaker": _by_speaker(results),
    }


def _by_duration(results: ModelResults) -> list[DurationScores]:
    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(results.rows):
        # Whisper's window is 30 s: a clip of exactly 30 s still fits.
        bucket = bisect_right(DURATIONS_S[:-1], row.duration_s) - 1 + (row.duration_s > DURATIONS_S[-1])
        buckets.setdefault(bucket, []).append(i)
    scores = list[DurationScores]()
    for bucket, indices in sorted(buckets.items()):
        words = int(results.words[indices].sum())
        scores.append(
            {
                "low_s": DURATIONS_S[bucket],
                "high_s": DURATIONS_S[bucket + 1] if bucket + 1 < len(DURATIONS_S) else None,
                "utterances": len(indices),
                "words": words,
                "wer": int(results.errors[indices].sum()) / words if words else None,
            }
        )
    return scores


def _by_speaker(results: ModelResults) -> SpeakerScores | None:
    by_speaker: dict[str, list[int]] = {}
    for i, row in enumerate(results.rows):
        if row.speaker:
            by_speaker.setdefault(row.speaker, []).append(i)
    speakers = list[SpeakerScore]()
    for name, indices in by_speaker.items():
        words = int(results.words[indices].sum())
        if words:
            wer = int(results.errors[indices].sum()) / words
            speakers.append({"speaker": name, "utterances": len(indices), "words": words, "wer": wer})
    if not speakers:
        return None
    speakers.sort(key=lambda s: (-s["wer"], s["speaker"]))
    macro = float(np.mean([s["wer"] for s in speakers]))
    return {"speakers": len(speakers), "macro_wer": macro, "worst": speakers[:N_WORST_SPEAKERS]}


def _score_domain(sets: Sequence[SetResults], rates: Mapping[str, Array], baseline: str) -> DomainScores | None:
    if not sets:
        return None
    models = list(sets[0].results)
    macro = np.mean([rates[r.set] for r in sets], axis=0)
    pooled = reduce(operator.add, (r.bootstrap for r in sets)).rates
    return {
        "sets": [r.set for r in sets],
        "utterances": sum(len(r.common.rows) for r in sets),
        "words": sum(r.n_words for r in sets),
        "macro": compare(macro, models, baseline),
        "pooled": compare(pooled, models, baseline),
    }


def _level(condition: str) -> tuple[str, float]:
    """Sort conditions by kind and then by number: ``white@5`` before ``white@10``."""
    kind, _, level = condition.partition("@")
    return kind, float(level or 0)


def _score_condition(sets: Sequence[SetResults], clean: Mapping[str, SetResults], baseline: str) -> ConditionScores:
    models = list(sets[0].results)
    errors, words = np.zeros(len(models), dtype=np.int64), 0
    for r in sets:
        position = {row.id: i for i, row in enumerate(clean[r.set].common.rows)} if r.set in clean else {}
        missing = [row.id for row in r.common.rows if row.id not in position]
        if missing:
            raise AskdError(
                f"scores: {missing[0]!r} of {r.set} has a row under the condition {r.condition} but no clean row"
            )
        indices = [position[row.id] for row in r.common.rows]
        errors += [clean[r.set].results[name].errors[indices].sum() for name in models]
        words += int(clean[r.set].common.words[indices].sum())
    return {
        **compare(reduce(operator.add, (r.bootstrap for r in sets)).rates, models, baseline),
        "sets": [r.set for r in sets],
        "utterances": sum(len(r.common.rows) for r in sets),
        "words": sum(r.n_words for r in sets),
        "clean_wer": {name: int(e) / words for name, e in zip(models, errors, strict=True)},
    }
