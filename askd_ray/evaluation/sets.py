"""The evaluation sets: the run's held-out split, and the recipe's sets, one set per domain."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import soundfile

from askd_ray.audio.decode import duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.evaluate import SpeechSet
from askd_ray.data.row_check import NO_TEXT, Rejected, RowLimits, check_row, clean_row
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, read_utterances
from askd_ray.data.sources import SourceRow, read_rows
from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import NON_SPEECH
from askd_ray.evaluation.non_speech import non_speech_clips
from askd_ray.files import digest
from askd_ray.location import map_concurrently
from askd_ray.progress import console
from askd_ray.runs import Run
from askd_ray.text.languages import language_code

LONGEST_S = 7200.0  # the limit of one recording
_SHORTEST_S = 0.1

MARKED_TRAIN, TRAINED_ON = "marked as train data", "in the train split"
"""The reasons for leaving out rows that the student may have seen: the source marks them, or they are in the run's
train split."""


@dataclass(frozen=True)
class EvalSet:
    """Utterances of one domain. ``in_domain``: the student was trained on this domain."""

    name: str
    in_domain: bool
    utterances: tuple[Utterance, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all audio and references."""
        return digest([[u.id, u.content_hash, u.text, u.language] for u in self.utterances])


def non_speech_set(noise_files: str | None) -> EvalSet:
    """Return a set of clips without speech: the references are empty, and the domain is the kind of sound."""
    utterances: list[Utterance] = []
    for clip in non_speech_clips(noise_files):
        file = io.BytesIO()
        soundfile.write(file, clip.waveform, SAMPLE_RATE_HZ, format="FLAC")
        utterances.append(
            Utterance(
                id=clip.id,
                audio=file.getvalue(),
                path=f"{clip.id}.flac",
                text="",
                duration_s=duration_s(clip.waveform),
                speaker="",
                language="en",
                domain=clip.kind,
                split="test",
                licence="",
            )
        )
    return EvalSet(NON_SPEECH, False, tuple(utterances))


def read_sets(run: Run) -> tuple[list[EvalSet], dict[str, dict[str, int]]]:
    """Return the sets of a run's evaluation, and how many rows of each set are left out, by reason.

    Rows that the student may have seen are left out: rows that the data mark as train, and utterances of the run's
    train split with the same text. A set whose ``split`` is train keeps its marked rows.

    Raises :class:`AskdError` when a set is missing, damaged, or has no usable row.
    """
    settings = run.recipe.evaluate
    sets: list[EvalSet] = []
    left_out: dict[str, dict[str, int]] = {}
    if settings.split is not None:
        utterances = read_utterances(run.shards, settings.split)
        sets += _by_domain(settings.split, True, utterances)
    trained_on = _trained_on(run) if settings.sets else frozenset[str]()
    for test_set in settings.sets:
        utterances, reasons = _read(test_set, trained_on)
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "no row"
        if not utterances:
            remedy = "; to score rows marked as train, set split: train in this set" if MARKED_TRAIN in reasons else ""
            raise AskdError(f"evaluate.sets {test_set.name}: nothing to score in {test_set.path}: {why}{remedy}")
        sets += _by_domain(test_set.name, test_set.in_domain, utterances)
        if reasons:
            left_out[test_set.name] = dict(reasons)
    if settings.non_speech:
        sets.append(non_speech_set(settings.noise_files))
    return sets, left_out


def print_left_out(left_out: Mapping[str, Mapping[str, int]]) -> None:
    """Print how many rows of each set are left out, and why."""
    for name, reasons in left_out.items():
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        console.print(f"evaluate.sets {name}: left out: {why}", markup=False)


def _trained_on(run: Run) -> frozenset[str]:
    """Return the content hashes of the run's train utterances; an empty set without shards."""
    tables = map_concurrently(lambda file: read_table(file, ["content_hash"]), run.shards.files("train-*.parquet"))
    return frozenset(content for table in tables for content in table["content_hash"].to_pylist())


def _by_domain(name: str, in_domain: bool, utterances: Sequence[Utterance]) -> list[EvalSet]:
    domains = sorted({u.domain for u in utterances})
    if len(domains) == 1:
        return [EvalSet(name, in_domain, tuple(utterances))]
    return [EvalSet(f"{name}/{d}", in_domain, tuple(u for u in utterances if u.domain == d)) for d in domains]


def _read(test_set: SpeechSet, trained_on: frozenset[str]) -> tuple[list[Utterance], Counter[str]]:
    try:
        language_code(test_set.language)
    except AskdError as error:
        raise AskdError(f"evaluate.sets {test_set.name}: {error}") from None
    utterances: dict[str, Utterance] = {}
    left_out: Counter[str] = Counter()
    for row in read_rows(test_set):
        outcome = _utterance(row)
        is_chosen = row.split == "train" and test_set.split is not None  # the recipe selects train data
        if isinstance(outcome, Rejected):
            left_out[outcome.reason] += 1
        elif row.split == "train" and not is_chosen:
            left_out[MARKED_TRAIN] += 1
        elif outcome.content_hash in trained_on and not is_chosen:
            left_out[TRAINED_ON] += 1
        elif row.id in utterances:
            left_out["duplicate id"] += 1
        else:
            utterances[row.id] = outcome
    return list(utterances.values()), left_out


def _utterance(row: SourceRow) -> Utterance | Rejected:
    cleaned = clean_row(row)
    if isinstance(cleaned, Rejected):
        return cleaned
    if not cleaned.text:
        return Rejected(row.id, row.where, NO_TEXT, "")
    return check_row(cleaned, RowLimits(_SHORTEST_S, LONGEST_S), "test")
