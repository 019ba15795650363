"""The decode jobs of an evaluation: one model, some utterances of a set, one condition; each writes a Parquet file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from askd_ray.audio.decode import Waveform
from askd_ray.audio.sounds import sound_files
from askd_ray.config.evaluate import Evaluate
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.evaluation.conditions import Condition, Sounds, apply, voices_of
from askd_ray.evaluation.hypotheses import (
    CLEAN,
    NON_SPEECH,
    RAW,
    SERVED,
    DecodingPath,
    Hypothesis,
    read_hypotheses,
    write_hypotheses,
)
from askd_ray.evaluation.latency import evenly
from askd_ray.evaluation.sets import EvalSet
from askd_ray.evaluation.systems import AsrSystem, SystemTranscript, weights_hash
from askd_ray.files import digest
from askd_ray.torch_setup import Device

JOB_CLIPS = 64
DECODING_FORMAT = 4
"""Changes with the columns of a job's file and with the way models transcribe."""
_SEED = 0  # of the conditions: they are the same in every evaluation


@dataclass(frozen=True)
class DecodeJob:
    """Utterances of a set, by number, under a condition, for one model. ``key`` is a hash of all inputs of the rows."""

    model: str
    reference: str
    set: str
    condition: str
    numbers: tuple[int, ...]
    key: str

    def file(self, folder: Path) -> Path:
        """The file of the job's rows."""
        return folder / f"{self.key}.parquet"


@dataclass(frozen=True)
class Material:
    """The input of all jobs: sets by name, and the sounds for the conditions."""

    sets: Mapping[str, EvalSet]
    sounds: Sounds

    @classmethod
    def of(cls, sets: Sequence[EvalSet], settings: Evaluate) -> "Material":
        """Return the material of an evaluation.

        Raises :class:`AskdError` for the condition babble when utterances have no speaker labels.
        """
        speech = [chosen for chosen in sets if chosen.name != NON_SPEECH]
        has_babble = any(Condition.parse(c).kind == "babble" for c in settings.conditions)
        all_utterances = [u for chosen in speech for u in chosen.utterances] if has_babble else []
        voices = voices_of(", ".join(s.name for s in speech), all_utterances, _SEED) if has_babble else ()
        return cls({s.name: s for s in sets}, Sounds(settings.noise_files, settings.room_files, voices))

    def waveform(self, job: DecodeJob, utterance: Utterance) -> Waveform:
        """Return the audio of an utterance under the job's condition."""
        clean = waveform_of(utterance)
        if job.condition == CLEAN:
            return clean
        return apply(
            Condition.parse(job.condition),
            clean,
            utterance_id=utterance.id,
            speaker=utterance.speaker,
            seed=_SEED,
            sounds=self.sounds,
        )


def decode_jobs(
    models: Mapping[str, str], sets: Sequence[EvalSet], settings: Evaluate, device: Device = "cpu"
) -> list[DecodeJob]:
    """Return the jobs of an evaluation, model by model, so that each model is loaded once.

    A job's key depends on the model's weights and the set's content, not on their names. So a renamed model or set is
    not decoded again.
    """
    sounds = [_listed(settings.noise_files), _listed(settings.room_files), [chosen.fingerprint for chosen in sets]]
    jobs: list[DecodeJob] = []
    for model, reference in models.items():
        weights = weights_hash(reference, device)
        for chosen in sets:
            for condition, numbers in _clips_by_condition(chosen, settings):
                for first in range(0, len(numbers), JOB_CLIPS):
                    job_numbers = tuple(numbers[first : first + JOB_CLIPS])
                    inputs = [DECODING_FORMAT, weights, chosen.fingerprint, condition, job_numbers]
                    key = digest(inputs if condition == CLEAN else [*inputs, sounds])
                    jobs.append(DecodeJob(model, reference, chosen.name, condition, job_numbers, key))
    return jobs


def _listed(pattern: str | None) -> list[tuple[str, int]] | None:
    return None if pattern is None else [(file.name, file.stat().st_size) for file in sound_files(pattern)]


def _clips_by_condition(chosen: EvalSet, settings: Evaluate) -> Iterator[tuple[str, list[int]]]:
    """Yield the conditions of a set and the numbers of the utterances that are decoded under each."""
    yield CLEAN, list(range(len(chosen.utterances)))
    if chosen.name != NON_SPEECH:
        sample = {u.id for u in evenly(chosen.utterances, settings.condition_clips)}
        numbers = [n for n, u in enumerate(chosen.utterances) if u.id in sample]
        yield from ((condition, numbers) for condition in settings.conditions)


def run_decode_job(job: DecodeJob, system: AsrSystem, material: Material, folder: Path) -> None:
    """Transcribe the utterances of a job and write the hypotheses."""
    chosen, rows = material.sets[job.set], dict[int, list[Hypothesis]]()
    by_language = sorted(job.numbers, key=lambda n: chosen.utterances[n].language)
    for language, numbers in groupby(by_language, key=lambda n: chosen.utterances[n].language):
        clips = [(n, chosen.utterances[n]) for n in numbers]
        transcripts = system.transcribe([material.waveform(job, u) for _, u in clips], language)
        for (n, u), both in zip(clips, transcripts, strict=True):
            rows[n] = [_row(job, chosen, u, both.served, SERVED)]
            rows[n] += [] if both.raw is None else [_row(job, chosen, u, both.raw, RAW)]
    write_hypotheses(job.file(folder), [row for n in job.numbers for row in rows[n]])


def _row(
    job: DecodeJob, chosen: EvalSet, utterance: Utterance, transcript: SystemTranscript, path: DecodingPath
) -> Hypothesis:
    return Hypothesis(
        model=job.model,
        set=job.set,
        in_domain=chosen.in_domain,
        condition=utterance.domain if job.set == NON_SPEECH else job.condition,  # there the domain is the kind of sound
        id=utterance.id,
        speaker=utterance.speaker,
        language=utterance.language,
        duration_s=utterance.duration_s,
        reference=utterance.text,
        hypothesis=transcript.text,
        token_texts=transcript.token_texts,
        token_probs=transcript.token_probs,
        ended=transcript.ended,
        path=path,
    )


def collect_hypotheses(jobs: Sequence[DecodeJob], material: Material, folder: Path) -> Iterator[Hypothesis]:
    """Yield the rows of all jobs, with the current names of models and sets."""
    for job in jobs:
        for row in read_hypotheses(job.file(folder)):
            yield replace(row, model=job.model, set=job.set, in_domain=material.sets[job.set].in_domain)
