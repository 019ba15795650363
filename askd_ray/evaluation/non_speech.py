"""Clips without speech: every word that a model outputs for them is a hallucination (docs/evaluation.md).

All clips except a recipe's noise files are synthetic and always the same, so that evaluations can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import fit_length, within_one
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
# Chords as semitones above the key's lowest note: I-V-vi-IV in major, i-VI-III-VII in minor.
_PROGRESSIONS = (
    ((0, 4, 7), (7, 11, 14), (9, 12, 16), (5, 9, 12)),
    ((0, 3, 7), (8, 12, 15), (3, 7, 10), (10, 14, 17)),
)
_N_HARMONICS, _STRING_S = 8, 4.0  # at the end a string is 70 dB below its beginning


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


def _at_level(sound: torch.Tensor, level_db: float) -> torch.Tensor:
    rms = sound.square().mean().sqrt()
    return sound * (10.0 ** (level_db / 20.0) / rms) if rms > 0.0 else sound


def _silence() -> Iterator[NonSpeech]:
    """Yield digital silence, and the noise floor of a microphone."""
    for seconds in _LENGTHS_S:
        n_samples = samples_of(seconds)
        yield _clip("silence", "digital", torch.zeros(n_samples))
        white = fit_length(synthetic_noises()[0], n_samples, _rng(f"floor {seconds}"))
        yield _clip("silence", "floor", _at_level(white, _FLOOR_DB))


def _synthetic_noises() -> Iterator[NonSpeech]:
    for i, (seconds, (number, noise)) in enumerate(product(_LENGTHS_S, enumerate(synthetic_noises()))):
        part = fit_length(noise, samples_of(seconds), _rng(f"noise {i}"))
        yield _clip("noise", f"synthetic{number}", _at_level(part, _NOISE_DB[i % len(_NOISE_DB)]))


def _recorded_noises(pattern: str) -> Iterator[NonSpeech]:
    """Yield a section of each file at its original level; the lengths rotate."""
    files = sound_files(pattern)
    taken = files[:: -(-len(files) // _MAX_FILES)]
    for i, file in enumerate(taken):
        n_samples = samples_of(_LENGTHS_S[i % len(_LENGTHS_S)])
        yield _clip("noise", f"{i:02d}-{file.stem}", fit_length(recording(file), n_samples, _rng(f"noise {file.name}")))


def _tones() -> Iterator[NonSpeech]:
    for (name, (frequencies_hz, on_s, off_s)), seconds in product(_TONES.items(), _LENGTHS_S):
        t = torch.arange(samples_of(seconds), dtype=torch.float64) / SAMPLE_RATE_HZ
        tone = torch.stack([torch.sin(2.0 * torch.pi * hz * t) for hz in frequencies_hz]).sum(0)
        on = t % (on_s + off_s) < on_s
        yield _clip("tone", name, _at_level(tone * on, _TONE_DB).float())


def _music() -> Iterator[NonSpeech]:
    """Yield short pieces for plucked strings and a bass: chords and arpeggios in turn."""
    for number in range(_N_MUSIC):
        arpeggio, rng = number % 2 == 1, _rng(f"music {number}")
        n_samples = samples_of(round(rng.uniform(*_MUSIC_S), 1))
        piece = np.zeros(n_samples)
        key, progression = rng.randrange(45, 57), rng.choice(_PROGRESSIONS)  # MIDI: from A2
        beat = samples_of(60.0 / rng.randrange(70, 131))
        for bar, start in enumerate(range(0, n_samples, 4 * beat)):
            chord = [key + half_tones for half_tones in progression[bar % len(progression)]]
            _pluck(piece, start, chord[0] - 12)
            for eighth in range(8):
                played = [chord[eighth % len(chord)]] if arpeggio else chord if eighth % 4 == 0 else []
                for note in played:
                    _pluck(piece, start + eighth * beat // 2, note)
        yield _clip("music", str(number), _at_level(torch.from_numpy(piece), _MUSIC_DB).float())


def _pluck(piece: NDArray[np.float64], start: int, note: int) -> None:
    """Add a plucked string to a piece, from the sample ``start`` on."""
    sound = _string(note)
    rest = piece[start : start + len(sound)]
    rest += sound[: len(rest)]


@lru_cache(maxsize=64)
def _string(note: int) -> NDArray[np.float64]:
    """Return a plucked string: higher harmonics are softer and decay faster. ``note`` is the MIDI number."""
    t = np.arange(samples_of(_STRING_S)) / SAMPLE_RATE_HZ
    hz = 440.0 * 2.0 ** ((note - 69) / 12)
    numbers = np.arange(1, _N_HARMONICS + 1)[:, None]
    return (np.sin(2.0 * np.pi * hz * numbers * t) * np.exp(-2.0 * numbers * t) / numbers).sum(0)
