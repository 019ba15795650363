"""Groups hypotheses by set and condition: checks that models can be compared, normalises, and counts word errors."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from askd_ray.config.evaluate import Normalizer
from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import NON_SPEECH, Hypothesis
from askd_ray.evaluation.significance import BootstrapDraws, draw
from askd_ray.models.decode_fallback import has_too_many_characters
from askd_ray.text.error_rate import ErrorCounts, count_each
from askd_ray.text.normalize import normalizer

ByModel = Mapping[str, Mapping[str, Hypothesis]]  # model, id


@dataclass(frozen=True)
class ModelResults:
    """The results of one model on the utterances of a set, sorted by id: raw rows, normalised texts, word errors."""

    rows: tuple[Hypothesis, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    counts: tuple[ErrorCounts, ...]

    @cached_property
    def errors(self) -> NDArray[np.int64]:
        """Word errors of each utterance, ``(n_utterances,)``."""
        return np.asarray([c.errors for c in self.counts], dtype=np.int64)

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """Words of each reference, ``(n_utterances,)``."""
        return np.asarray([c.n_reference for c in self.counts], dtype=np.int64)

    @property
    def runaways(self) -> int:
        """The number of outputs that the decoding limit ended, or that have more characters than anybody can say."""
        rows = self.rows
        return sum(r.ended is False or has_too_many_characters(r.hypothesis, r.duration_s) for r in rows)


@dataclass(frozen=True)
class SetResults:
    """The results of all models on one set under one condition: the same utterances, in the same order."""

    set: str
    condition: str
    in_domain: bool
    results: dict[str, ModelResults]

    @property
    def common(self) -> ModelResults:
        """The results of any model, for what is equal for all models: the utterances and their words."""
        return next(iter(self.results.values()))

    @cached_property
    def n_words(self) -> int:
        """The number of words of all references."""
        return int(self.common.words.sum())

    @property
    def minutes(self) -> float:
        """The length of all utterances."""
        return sum(row.duration_s for row in self.common.rows) / 60

    @cached_property
    def bootstrap(self) -> BootstrapDraws:
        """Bootstrap samples; each set has a seed of its own."""
        errors = np.column_stack([results.errors for results in self.results.values()])
        return draw(errors, self.common.words, seed=zlib.crc32(self.set.encode()))


def tally(rows: Sequence[Hypothesis], baseline: str, kind: Normalizer) -> list[SetResults]:
    """Group rows by set and condition, sorted by name, and count errors; the baseline is the first model.

    Raises :class:`AskdError` when models cannot be compared: the baseline is missing; a model has two rows of an
    utterance, lacks utterances, or has other utterances under the same ids; a set is in domain in one row and out of
    domain in another; a set has no reference words, or :data:`NON_SPEECH` has some.
    """
    models = sorted({row.model for row in rows}, key=lambda name: (name != baseline, name))
    if baseline not in models:
        raise AskdError(f"scores: the baseline {baseline!r} is not among the models: {', '.join(models) or 'no rows'}")
    domains = {(row.set, row.in_domain) for row in rows}
    for name, in_domain in sorted(domains):
        if in_domain and (name, False) in domains:
            raise AskdError(f"scores: {name} is in domain in one row and out of domain in another")
    groups: dict[tuple[str, str], dict[str, dict[str, Hypothesis]]] = {}
    for row in rows:
        by_id = groups.setdefault((row.set, row.condition), {name: {} for name in models})[row.model]
        if row.id in by_id:
            raise AskdError(f"scores: {row.model} has two rows of {row.id!r} ({row.set}, {row.condition})")
        by_id[row.id] = row
    text = {
        (language, raw): " ".join(normalizer(language, kind)(raw).split())
        for language, raw in {(row.language, raw) for row in rows for raw in (row.reference, row.hypothesis)}
    }
    return [_set_results(key, groups[key], baseline, text) for key in sorted(groups)]


def _set_results(
    key: tuple[str, str], by_model: ByModel, baseline: str, text: Mapping[tuple[str, str], str]
) -> SetResults:
    name, condition = key
    where, expected = f"({name}, {condition})", by_model[baseline]
    for model, by_id in by_model.items():
        for one, other in ((model, baseline), (baseline, model)):
            missing = sorted(by_model[other].keys() - by_model[one].keys())
            if missing:
                raise AskdError(
                    f"scores: {one} lacks {len(missing)} of the utterances that {other} has {where}, such as "
                    f"{missing[0]!r}: models are compared on the same utterances"
                )
        for row in by_id.values():
            if _utterance_fields(row) != _utterance_fields(expected[row.id]):
                raise AskdError(f"scores: {row.id!r} {where} is not the same for {model} as for {baseline}")
    results = {model: _model_results([by_id[i] for i in sorted(by_id)], text) for model, by_id in by_model.items()}
    first = results[baseline]
    if name == NON_SPEECH and first.words.any():
        raise AskdError(f"scores: the references of {name} have words, but its clips contain no speech")
    if name != NON_SPEECH and not first.words.any():
        raise AskdError(f"scores: no reference has a word after normalisation {where}")
    return SetResults(name, condition, first.rows[0].in_domain, results)


def _utterance_fields(row: Hypothesis) -> tuple[object, ...]:
    """Return the fields that describe the utterance, not the model's output."""
    return row.speaker, row.language, row.duration_s, row.reference


def _model_results(rows: Sequence[Hypothesis], text: Mapping[tuple[str, str], str]) -> ModelResults:
    references = tuple(text[row.language, row.reference] for row in rows)
    hypotheses = tuple(text[row.language, row.hypothesis] for row in rows)
    return ModelResults(tuple(rows), references, hypotheses, tuple(count_each(references, hypotheses)))
