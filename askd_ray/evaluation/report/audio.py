"""Reads the audio of utterances again from the evaluation's sources, as files that browsers play."""

import io
from collections.abc import Iterable, Sequence

import soundfile

from askd_ray.audio.decode import AudioError, Waveform, decode
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.evaluate import Evaluate
from askd_ray.errors import AskdError
from askd_ray.evaluation.report.document import Audio
from askd_ray.evaluation.sets import EvalSet, read_sets
from askd_ray.runs import Run

AudioKey = tuple[str, str]  # set, id

LONGEST_S = 60.0
"""The limit for a clip in the page: about half a megabyte."""


def find_audio(runs: Iterable[Run], keys: Sequence[AudioKey]) -> dict[AudioKey, Audio | str]:
    """Return the audio of utterances, as the models received it, or the reason why there is none."""
    audio = dict[AudioKey, Audio | str]()
    for run in runs:
        missing = [key for key in keys if not isinstance(audio.get(key), Audio)]
        for settings, name in _settings_by_set(run.recipe.evaluate):
            of_set = {key for key in missing if key[0] == name or key[0].startswith(f"{name}/")}
            if not of_set:
                continue
            try:
                sets, _ = read_sets(Run(run.recipe.model_copy(update={"evaluate": settings})))
            except (AskdError, OSError) as error:
                audio |= {key: f"the audio is no longer available: {error}" for key in of_set}
            else:
                audio |= {key: _playable(sets, key) for key in of_set}
    missing_set = "the audio is no longer available: the recipe has no such set"
    return {key: audio.get(key, missing_set) for key in keys}


def _settings_by_set(settings: Evaluate) -> list[tuple[Evaluate, str]]:
    """Return settings with one set each, so that a missing set does not affect the others."""
    speech = settings.model_copy(update={"non_speech": False})
    by_set = [(speech.model_copy(update={"split": None, "sets": (chosen,)}), chosen.name) for chosen in settings.sets]
    if settings.split is not None:
        by_set.append((speech.model_copy(update={"sets": ()}), settings.split))
    return by_set


def _playable(sets: Sequence[EvalSet], key: AudioKey) -> Audio | str:
    clips = [u for chosen in sets if chosen.name == key[0] for u in chosen.utterances if u.id == key[1]]
    if not clips:
        return "the audio is no longer available: the set no longer has this utterance"
    if clips[0].duration_s > LONGEST_S:
        return f"not included: longer than {LONGEST_S:g} s"
    try:
        return Audio("audio/mpeg", _mp3(decode(clips[0].audio, LONGEST_S)))
    except AudioError as error:
        return f"the audio cannot be decoded: {error}"


def _mp3(waveform: Waveform) -> bytes:
    """Encode audio as MP3: every browser plays it, and it has a tenth of the size of WAV."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE_HZ, format="MP3")
    return file.getvalue()
