"""The work of an evaluation in parts: one model on some utterances of a set under one condition, kept as Parquet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.evaluate.hypotheses import CLEAN, Hypothesis, read_hypotheses, write_hypotheses
from askd_ray.evaluate.sets import EvalSet
from askd_ray.evaluate.systems import Heard, Recogniser, weights_hash
from askd_ray.files import digest

PART_CLIPS = 64
_FORMAT = 1  # of what a part holds


@dataclass(frozen=True)
class Part:
    """Utterances ``first`` to ``last`` of a set under a condition, for one model. ``key`` names all that decides it."""

    model: str
    reference: str
    set: str
    condition: str
    first: int
    last: int
    key: str

    def file(self, folder: Path) -> Path:
        """Where its rows are kept."""
        return folder / f"{self.key}.parquet"


def parts(models: Mapping[str, str], sets: Sequence[EvalSet], conditions: Sequence[str]) -> list[Part]:
    """Return the parts of an evaluation, model by model, so that each model is loaded once.

    A part's key holds the model's weights and the set's content, and neither's name: what is decoded already is found
    again whatever it is called.
    """
    made: list[Part] = []
    for model, reference in models.items():
        weights = weights_hash(reference)
        for chosen in sets:
            for condition in (CLEAN, *conditions):
                for first in range(0, len(chosen.utterances), PART_CLIPS):
                    last = min(first + PART_CLIPS, len(chosen.utterances))
                    key = digest([_FORMAT, weights, chosen.fingerprint, condition, first, last])
                    made.append(Part(model, reference, chosen.name, condition, first, last, key))
    return made


def decode_part(part: Part, recogniser: Recogniser, chosen: EvalSet, folder: Path) -> None:
    """Run a model over a part and write what it said."""
    rows: dict[int, Hypothesis] = {}
    numbered = [(n, chosen.utterances[n]) for n in range(part.first, part.last)]
    for language, group in groupby(sorted(numbered, key=lambda nu: nu[1].language), key=lambda nu: nu[1].language):
        spoken = list(group)
        heard = recogniser.hear([waveform_of(u) for _, u in spoken], language)
        for (number, utterance), said in zip(spoken, heard, strict=True):
            rows[number] = _row(part, chosen, utterance, said)
    write_hypotheses(part.file(folder), [rows[n] for n, _ in numbered])


def _row(part: Part, chosen: EvalSet, utterance: Utterance, said: Heard) -> Hypothesis:
    return Hypothesis(
        model=part.model,
        set=part.set,
        in_domain=chosen.in_domain,
        condition=part.condition,
        id=utterance.id,
        speaker=utterance.speaker,
        language=utterance.language,
        duration_s=utterance.duration_s,
        reference=utterance.text,
        hypothesis=said.text,
        token_texts=said.token_texts,
        token_probs=said.token_probs,
        ended=said.ended,
    )


def collected(todo: Sequence[Part], sets: Sequence[EvalSet], folder: Path) -> Iterator[Hypothesis]:
    """Yield the rows of all parts, under the names that models and sets have now."""
    in_domain = {chosen.name: chosen.in_domain for chosen in sets}
    for part in todo:
        for row in read_hypotheses(part.file(folder)):
            yield replace(row, model=part.model, set=part.set, in_domain=in_domain[part.set])
