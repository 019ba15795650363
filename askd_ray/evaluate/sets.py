"""The speech that models are compared on: the run's own held-out split, and the recipe's sets, domain by domain."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import soundfile

from askd_ray.audio.decode import AudioError, decode, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.evaluate import SpeechSet
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances
from askd_ray.data.sources import SourceRow, read_rows
from askd_ray.errors import AskdError
from askd_ray.evaluate.hypotheses import NON_SPEECH
from askd_ray.evaluate.non_speech import non_speech_clips
from askd_ray.files import digest
from askd_ray.runs import Run

LONGEST_S = 7200.0  # of one recording


@dataclass(frozen=True)
class EvalSet:
    """Utterances of one domain. ``in_domain``: the student was trained on such speech."""

    name: str
    in_domain: bool
    utterances: tuple[Utterance, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash over all audio and references."""
        return digest([[u.id, u.content_hash, u.text, u.language] for u in self.utterances])


def non_speech_set(noise_files: str | None) -> EvalSet:
    """Return clips in which nobody speaks, as a set whose references are empty; the domain says what is heard."""
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
    """Return the sets of a run's evaluation, and how many rows of each are left out, by reason.

    Raises :class:`AskdError` when a set is missing, damaged, or has nothing to score.
    """
    settings = run.recipe.evaluate
    found: list[EvalSet] = []
    left_out: dict[str, dict[str, int]] = {}
    if settings.split is not None:
        utterances = read_utterances(run.shards, settings.split)
        found += _by_domain(settings.split, True, utterances)
    for test_set in settings.sets:
        utterances, reasons = _read(test_set)
        if not utterances:
            why = ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "no row"
            raise AskdError(f"evaluate.sets {test_set.name}: nothing to score in {test_set.path}: {why}")
        found += _by_domain(test_set.name, test_set.in_domain, utterances)
        if reasons:
            left_out[test_set.name] = dict(reasons)
    if settings.non_speech:
        found.append(non_speech_set(settings.noise_files))
    return found, left_out


def _by_domain(name: str, in_domain: bool, utterances: Sequence[Utterance]) -> list[EvalSet]:
    domains = sorted({u.domain for u in utterances})
    if len(domains) == 1:
        return [EvalSet(name, in_domain, tuple(utterances))]
    return [EvalSet(f"{name}/{d}", in_domain, tuple(u for u in utterances if u.domain == d)) for d in domains]


def _read(test_set: SpeechSet) -> tuple[list[Utterance], Counter[str]]:
    taken: list[Utterance] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(test_set):
        try:
            if not row.text and not row.problem:
                raise AudioError("no reference")
            taken.append(_utterance(row))
        except AudioError as error:
            left_out[str(error).partition(":")[0]] += 1
    return taken, left_out


def _utterance(row: SourceRow) -> Utterance:
    audio = row.read_audio(LONGEST_S)
    return Utterance(
        id=row.id,
        audio=audio,
        path=row.path,
        text=row.text,
        duration_s=duration_s(decode(audio, LONGEST_S)),
        speaker=row.speaker,
        language=row.language,
        domain=row.domain,
        split="test",
        licence=row.licence,
    )
