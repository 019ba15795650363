"""The sound of utterances, found again where the evaluation had it from, as files that browsers play."""

import io
from collections.abc import Iterable, Sequence

import soundfile

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.evaluate import Evaluate
from askd_ray.errors import AskdError
from askd_ray.evaluate.report.document import Audio
from askd_ray.evaluate.sets import EvalSet, read_sets
from askd_ray.runs import Run

AudioKey = tuple[str, str]  # set, id

LONGEST_S = 60.0
"""Of a clip that a page holds: half a megabyte or so."""


def find_audio(runs: Iterable[Run], wanted: Sequence[AudioKey]) -> dict[AudioKey, Audio | str]:
    """Return the sound of utterances, as the models were given it, or the reason why there is none."""
    found = dict[AudioKey, Audio | str]()
    for run in runs:
        missing = [key for key in wanted if not isinstance(found.get(key), Audio)]
        for settings, name in _one_by_one(run.recipe.evaluate):
            of_set = {key for key in missing if key[0] == name or key[0].startswith(f"{name}/")}
            if not of_set:
                continue
            try:
                sets, _ = read_sets(Run(run.recipe.model_copy(update={"evaluate": settings})))
            except (AskdError, OSError) as error:
                found |= {key: f"the audio is no longer there: {error}" for key in of_set}
            else:
                found |= {key: _playable(sets, key) for key in of_set}
    gone = "the audio is no longer there: the recipe names no such set"
    return {key: found.get(key, gone) for key in wanted}


def _one_by_one(settings: Evaluate) -> list[tuple[Evaluate, str]]:
    """Return settings that name one set each, so that one that is gone takes no other with it."""
    speech = settings.model_copy(update={"non_speech": False})
    one = [(speech.model_copy(update={"split": None, "sets": (chosen,)}), chosen.name) for chosen in settings.sets]
    if settings.split is not None:
        one.append((speech.model_copy(update={"sets": ()}), settings.split))
    return one


def _playable(sets: Sequence[EvalSet], key: AudioKey) -> Audio | str:
    clips = [u for chosen in sets if chosen.name == key[0] for u in chosen.utterances if u.id == key[1]]
    if not clips:
        return "the audio is no longer there: the set has no such utterance any more"
    if clips[0].duration_s > LONGEST_S:
        return f"not played here: longer than {LONGEST_S:g} s"
    try:
        return Audio("audio/mpeg", _mp3(decode(clips[0].audio, LONGEST_S)))
    except AudioError as error:
        return f"the audio cannot be decoded: {error}"


def _mp3(waveform: Waveform) -> bytes:
    """Encode sound so that every browser plays it, at a tenth of its size as WAV."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE_HZ, format="MP3")
    return file.getvalue()
