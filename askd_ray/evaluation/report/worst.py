"""The worst clips of each student, to read and to listen to."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from askd_ray.evaluation.report.audio import AudioKey, find_audio
from askd_ray.evaluation.report.document import (
    Audio,
    ClipBlock,
    ClipsBlock,
    Legend,
    QuotedTranscript,
    ReportSection,
    Text,
)
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.evaluation.tally import SetResults
from askd_ray.text.alignment import align_words

N_ABOVE, N_RATE = 8, 4
_FEW_STUDENTS = 3  # up to this number, each student has a section
_MAX_TEXTS = 5  # transcripts besides the baseline's: those with the most errors
_MAX_WORDS = 150


def worst_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield for each student the clips with the most errors above the baseline's, then those with the highest WER.

    With many students, as in a study, the mean of their errors decides.
    """
    baseline, students = evaluated.scores["baseline"], tuple(evaluated.students)
    groups = [(student,) for student in students] if len(students) <= _FEW_STUDENTS else [students]
    chosen = {group: _worst(evaluated.clean, group, baseline) for group in groups}
    keys = [key for above, rates in chosen.values() for key in (*above, *rates)]
    audio = find_audio(evaluated.runs.values(), keys)
    set_results = {one.set: one for one in evaluated.clean}

    def clips(keys: Iterable[AudioKey]) -> ClipsBlock:
        return ClipsBlock(tuple(_clip(set_results[key[0]], key[1], audio[key], baseline) for key in keys))

    for group, (above, rates) in chosen.items():
        name = group[0] if len(group) == 1 else "the students"
        blocks = list[Text | ClipsBlock]()
        if above:
            blocks += [Text(f"The clips with the most errors of {name} above those of {baseline}:"), clips(above)]
        if rates:
            which = "Other clips" if above else "The clips"
            blocks += [Text(f"{which} with the highest WER of {name}:"), clips(rates)]
        if blocks:
            yield ReportSection(
                "Worst utterances" if len(groups) == 1 else f"Worst utterances: {name}", (Legend(), *blocks)
            )


def _worst(
    clean: Iterable[SetResults], students: Sequence[str], baseline: str
) -> tuple[list[AudioKey], list[AudioKey]]:
    more, rates = dict[AudioKey, tuple[float, ...]](), dict[AudioKey, tuple[float, ...]]()
    for set_results in clean:
        errors = np.mean([set_results.results[student].errors for student in students], axis=0)
        above = errors - set_results.results[baseline].errors
        wers = errors / np.maximum(set_results.common.words, 1)
        for i, row in enumerate(set_results.common.rows):
            if above[i] > 0:
                more[set_results.set, row.id] = (float(above[i]), float(wers[i]))
            if errors[i] > 0:
                rates[set_results.set, row.id] = (float(wers[i]), float(errors[i]))
    top_above = _top_keys(more, N_ABOVE)
    return top_above, _top_keys({key: value for key, value in rates.items() if key not in top_above}, N_RATE)


def _top_keys(values: dict[AudioKey, tuple[float, ...]], n: int) -> list[AudioKey]:
    return sorted(sorted(values), key=lambda key: values[key], reverse=True)[:n]


def _clip(set_results: SetResults, id_: str, audio: Audio | str, baseline: str) -> ClipBlock:
    index = next(i for i, row in enumerate(set_results.common.rows) if row.id == id_)
    row = set_results.common.rows[index]
    speaker = f", speaker {row.speaker}" if row.speaker else ""
    others = [model for model in set_results.results if model != baseline]
    if len(others) > _MAX_TEXTS:
        others = sorted(others, key=lambda model: -set_results.results[model].errors[index])[:_MAX_TEXTS]
    transcripts = list[QuotedTranscript]()
    for model in (baseline, *others):
        results = set_results.results[model]
        words = align_words(results.references[index], results.hypotheses[index])
        counts, shown = results.counts[index], tuple(words[:_MAX_WORDS])
        transcripts.append(QuotedTranscript(model, counts.errors, counts.n_reference, shown, len(words) - len(shown)))
    return ClipBlock(
        f"{set_results.set}: {row.id} ({row.duration_s:.1f} s{speaker})", audio, row.reference, tuple(transcripts)
    )
