"""The clips on which a student fared worst, to be read and listened to."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from askd_ray.evaluate.report.audio import AudioKey, find_audio
from askd_ray.evaluate.report.document import (
    Audio,
    ClipBlock,
    ClipsBlock,
    Legend,
    QuotedTranscript,
    ReportSection,
    Text,
)
from askd_ray.evaluate.report.runs import Evaluated
from askd_ray.evaluate.tally import SetResults
from askd_ray.text.alignment import align_words

N_ABOVE, N_RATE = 8, 4
_FEW_STUDENTS = 3  # each is shown by itself
_MAX_TEXTS = 5  # beside the baseline's: those with most errors
_MAX_WORDS = 150


def worst_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield the clips with most errors above the baseline's, and those with the highest WER besides, by student.

    Where there are many students, as in a study, it is their errors together that count.
    """
    baseline, students = evaluated.scores["baseline"], tuple(evaluated.students)
    groups = [(student,) for student in students] if len(students) <= _FEW_STUDENTS else [students]
    chosen = {group: _worst(evaluated.clean, group, baseline) for group in groups}
    wanted = [key for above, rates in chosen.values() for key in (*above, *rates)]
    audio = find_audio(evaluated.runs.values(), wanted)
    set_results = {one.set: one for one in evaluated.clean}

    def clips(keys: Iterable[AudioKey]) -> ClipsBlock:
        return ClipsBlock(tuple(_clip(set_results[key[0]], key[1], audio[key], baseline) for key in keys))

    for group, (above, rates) in chosen.items():
        who, makes, whose = (group[0], "makes", "its") if len(group) == 1 else ("the students", "make", "their")
        blocks = list[Text | ClipsBlock]()
        if above:
            blocks += [Text(f"The clips on which {who} {makes} most errors above {baseline}'s:"), clips(above)]
        if rates:
            which = "Of the others, those" if above else "The clips"
            blocks += [Text(f"{which} on which {whose} WER is highest:"), clips(rates)]
        if blocks:
            yield ReportSection(
                "Worst utterances" if len(groups) == 1 else f"Worst utterances: {who}", (Legend(), *blocks)
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
    most = _most(more, N_ABOVE)
    return most, _most({key: value for key, value in rates.items() if key not in most}, N_RATE)


def _most(of: dict[AudioKey, tuple[float, ...]], n: int) -> list[AudioKey]:
    return sorted(sorted(of), key=lambda key: of[key], reverse=True)[:n]


def _clip(set_results: SetResults, id_: str, audio: Audio | str, baseline: str) -> ClipBlock:
    at = next(i for i, row in enumerate(set_results.common.rows) if row.id == id_)
    row = set_results.common.rows[at]
    speaker = f", speaker {row.speaker}" if row.speaker else ""
    others = [model for model in set_results.results if model != baseline]
    if len(others) > _MAX_TEXTS:
        others = sorted(others, key=lambda model: -set_results.results[model].errors[at])[:_MAX_TEXTS]
    said = list[QuotedTranscript]()
    for model in (baseline, *others):
        results = set_results.results[model]
        words = align_words(results.references[at], results.hypotheses[at])
        counts, shown = results.counts[at], tuple(words[:_MAX_WORDS])
        said.append(QuotedTranscript(model, counts.errors, counts.n_reference, shown, len(words) - len(shown)))
    return ClipBlock(
        f"{set_results.set}: {row.id} ({row.duration_s:.1f} s{speaker})", audio, row.reference, tuple(said)
    )
