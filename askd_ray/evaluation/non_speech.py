"""Clips without speech: every word that a model outputs for them is a hallucination (docs/evaluation.md).

All clips except a recipe's noise files are synthetic and always the same, so that evaluations can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

import torch

from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import fit_length, within_one
from askd_ray.audio.non_speech import at_level, music, on_and_off, tone
from askd_ray.audio.sounds import recording, sound_files, synthetic_noises
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.randomness import draw_seed

_LENGTHS_S = (2.0, 5.0, 10.0, 20.0)
_NOISE_DB = (-15.0, -30.0, -45.0)  # RMS levels below full scale, from a loud street to a quiet room
_FLOOR_DB = -75.0  # noise floor of a good microphone: six steps of 16-bit audio
_MUSIC_DB, _TONE_DB = -20.0, -20.0
_MAX_FILES = 48  # spread evenly over the files that a pattern matches
_N_MUSIC, _MUSIC_S = 8, (8.0, 12.0)

# Telephone tones of North America (ITU-T E.180, supplement 2), and a tone for setting levels: frequencies, and the
# seconds on and off.
_TONES = {
    "dial": ((350.0, 440.0), 1.0, 0.0),
    "ringing": ((440.0, 480.0), 2.0, 4.0),
    "busy": ((480.0, 620.0), 0.5, 0.5),
    "level": ((1000.0,), 1.0, 0.0),
}


@dataclass(frozen=True)
class NonSpeech:
    """A clip ``(n_samples,)`` without speech; ``kind`` is silence, noise, music or tone."""

    id: str
    kind: str
    waveform: Waveform


def non_speech_clips(noise_files: str | None = None) -> list[NonSpeech]:
    """Return the clips, of 2 to 20 s: silence, noises, music and tones.

    ``noise_files`` is a pattern of sound files without speech; None takes synthetic noises.

    Raises :class:`~askd_ray.errors.AskdError` when a noise cannot be read.
    """
    noises = _synthetic_noises() if noise_files is None else _recorded_noises(noise_files)
    return [*_silence(), *noises, *_music(), *_tones()]


def _clip(kind: str, name: str, sound: torch.Tensor) -> NonSpeech:
    return NonSpeech(f"{kind}-{name}-{len(sound) / SAMPLE_RATE_HZ:g}s", kind, within_one(sound).numpy())


def _rng(name: str) -> Random:
    return Random(draw_seed(0, 0, name, "non_speech"))


def _silence() -> Iterator[NonSpeech]:
    """Yield digital silence, and the noise floor of a microphone."""
    for seconds in _LENGTHS_S:
        n_samples = samples_of(seconds)
        yield _clip("silence", "digital", torch.zeros(n_samples))
        white = fit_length(synthetic_noises()[0], n_samples, _rng(f"floor {seconds}"))
        yield _clip("silence", "floor", at_level(white, _FLOOR_DB))


def _synthetic_noises() -> Iterator[NonSpeech]:
    for i, (seconds, (number, noise)) in enumerate(product(_LENGTHS_S, enumerate(synthetic_noises()))):
        part = fit_length(noise, samples_of(seconds), _rng(f"noise {i}"))
        yield _clip("noise", f"synthetic{number}", at_level(part, _NOISE_DB[i % len(_NOISE_DB)]))


def _recorded_noises(pattern: str) -> Iterator[NonSpeech]:
    """Yield a section of each file at its original level; the lengths rotate."""
    files = sound_files(pattern)
    taken = files[:: -(-len(files) // _MAX_FILES)]
    for i, file in enumerate(taken):
        n_samples = samples_of(_LENGTHS_S[i % len(_LENGTHS_S)])
        yield _clip("noise", f"{i:02d}-{file.stem}", fit_length(recording(file), n_samples, _rng(f"noise {file.name}")))


def _tones() -> Iterator[NonSpeech]:
    for (name, (frequencies_hz, on_s, off_s)), seconds in product(_TONES.items(), _LENGTHS_S):
        n_samples = samples_of(seconds)
        sound = tone(frequencies_hz, n_samples) * on_and_off(n_samples, on_s, off_s)
        yield _clip("tone", name, at_level(sound, _TONE_DB).float())


def _music() -> Iterator[NonSpeech]:
    """Yield short pieces: chords and arpeggios in turn."""
    for number in range(_N_MUSIC):
        rng = _rng(f"music {number}")
        n_samples = samples_of(round(rng.uniform(*_MUSIC_S), 1))
        yield _clip("music", str(number), at_level(music(n_samples, number % 2 == 1, rng), _MUSIC_DB).float())
