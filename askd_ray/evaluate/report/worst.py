"""The clips on which a student fared worst, to be read and listened to."""

from collections.abc import Iterable, Iterator

from askd_ray.evaluate.report.audio import Key, find_audio
from askd_ray.evaluate.report.document import Audio, Clip, Clips, Legend, Said, Section, Text
from askd_ray.evaluate.report.runs import Evaluated
from askd_ray.evaluate.tally import Asked
from askd_ray.text.alignment import align_words

N_ABOVE, N_RATE = 8, 4
_MOST_WORDS = 150


def worst_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the clips with most errors above the baseline's, and those with the highest WER besides, by student."""
    baseline, asked = evaluated.scores["baseline"], {one.set: one for one in evaluated.clean}
    chosen = {student: _worst(evaluated.clean, student, baseline) for student in evaluated.students}
    wanted = [key for above, rates in chosen.values() for key in (*above, *rates)]
    audio = find_audio(evaluated.runs.values(), wanted)
    for student, (above, rates) in chosen.items():
        blocks = list[Text | Clips]()
        if above:
            blocks.append(Text(f"The clips on which {student} makes most errors above {baseline}'s:"))
            blocks.append(Clips(tuple(_clip(asked[key[0]], key[1], audio[key]) for key in above)))
        if rates:
            blocks.append(Text(f"{'Of the others, those' if above else 'The clips'} on which its WER is highest:"))
            blocks.append(Clips(tuple(_clip(asked[key[0]], key[1], audio[key]) for key in rates)))
        if blocks:
            title = "Worst utterances" if len(chosen) == 1 else f"Worst utterances: {student}"
            yield Section(title, (Legend(), *blocks))


def _worst(clean: Iterable[Asked], student: str, baseline: str) -> tuple[list[Key], list[Key]]:
    more, rates = dict[Key, tuple[float, ...]](), dict[Key, tuple[float, ...]]()
    for asked in clean:
        ours, theirs = asked.heard[student], asked.heard[baseline]
        for row, mine, other in zip(ours.rows, ours.counts, theirs.counts, strict=True):
            rate = mine.errors / max(mine.n_reference, 1)
            if mine.errors > other.errors:
                more[asked.set, row.id] = (mine.errors - other.errors, rate)
            if mine.errors:
                rates[asked.set, row.id] = (rate, mine.errors)
    above = _most(more, N_ABOVE)
    return above, _most({key: value for key, value in rates.items() if key not in above}, N_RATE)


def _most(of: dict[Key, tuple[float, ...]], n: int) -> list[Key]:
    return sorted(sorted(of), key=lambda key: of[key], reverse=True)[:n]


def _clip(asked: Asked, id_: str, audio: Audio | str) -> Clip:
    at = next(i for i, row in enumerate(asked.common.rows) if row.id == id_)
    row = asked.common.rows[at]
    speaker = f", speaker {row.speaker}" if row.speaker else ""
    said = list[Said]()
    for model, heard in asked.heard.items():
        words = align_words(heard.references[at], heard.hypotheses[at])
        counts, shown = heard.counts[at], tuple(words[:_MOST_WORDS])
        said.append(Said(model, counts.errors, counts.n_reference, shown, len(words) - len(shown)))
    return Clip(f"{asked.set}: {row.id} ({row.duration_s:.1f} s{speaker})", audio, row.reference, tuple(said))
