"""Sounds without speech: noises, hum, knocks, music, tones and silence, all made from a seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.audio.effects import fit_length, within_one
from askd_ray.audio.sounds import recording, sound_files, synthetic_noises
from askd_ray.audio.units import PADDED_S, SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.waveform import Waveform

SOUND_DB = -20.0
"""The RMS level of the synthetic sounds of :func:`sounds_without_speech`, below full scale."""

_BANK_S = 12.0
_MAX_FILES = 200
_N_MUSIC, _N_TONES, _N_KNOCKS, _N_GUSTS = 6, 6, 3, 3

# Chords as semitones above the key's lowest note: I-V-vi-IV in major, i-VI-III-VII in minor.
_PROGRESSIONS = (
    ((0, 4, 7), (7, 11, 14), (9, 12, 16), (5, 9, 12)),
    ((0, 3, 7), (8, 12, 15), (3, 7, 10), (10, 14, 17)),
)
_N_HARMONICS, _STRING_S = 8, 4.0  # at the end a string is 70 dB below its beginning


@dataclass(frozen=True)
class Sound:
    """A sound without speech, ``(n_samples,)``. ``kind`` is silence, noise, music or tone."""

    name: str
    kind: str
    waveform: Waveform


def sounds_without_speech(files: str | None, seed: int) -> Iterator[Sound]:
    """Yield recordings that match a pattern, up to 30 s of each, and synthetic sounds of 12 s; None: no recordings.

    Raises :class:`~askd_ray.errors.AskdError` when a recording cannot be read.
    """
    paths = () if files is None else sound_files(files)
    for number, path in enumerate(paths[:: -(-len(paths) // _MAX_FILES) or 1]):
        yield Sound(f"file{number}-{path.stem}", "noise", recording(path)[: samples_of(PADDED_S)].numpy())
    n_samples, rng = samples_of(_BANK_S), Random(seed)
    yield Sound("silence", "silence", np.zeros(n_samples, np.float32))
    noises = synthetic_noises(seed)
    for number, noise in enumerate(noises):
        yield _sound("noise", number, fit_length(noise, n_samples, rng))
    for number in range(_N_GUSTS):
        yield _sound("gusts", number, fit_length(rng.choice(noises), n_samples, rng) * _slow_envelope(n_samples, rng))
    for number, hz in enumerate((50.0, 60.0)):
        yield _sound("hum", number, tone([hz * harmonic for harmonic in (1, 2, 3, 5)], n_samples))
    for number in range(_N_KNOCKS):
        yield _sound("knocks", number, _knocks(n_samples, rng))
    for number in range(_N_MUSIC):
        yield _sound("music", number, music(n_samples, number % 2 == 1, rng))
    for number in range(_N_TONES):
        beep = tone([rng.uniform(200.0, 3000.0) for _ in range(rng.randrange(1, 3))], n_samples)
        yield _sound("tone", number, beep * on_and_off(n_samples, rng.uniform(0.05, 2.0), rng.uniform(0.05, 2.0)))


def at_level(sound: torch.Tensor, level_db: float) -> torch.Tensor:
    """Return a sound with this RMS level below full scale; silence stays silent."""
    rms = sound.square().mean().sqrt()
    return sound * (10.0 ** (level_db / 20.0) / rms) if rms > 0.0 else sound


def tone(frequencies_hz: list[float] | tuple[float, ...], n_samples: int) -> torch.Tensor:
    """Return the sum of sines, float64 ``(n_samples,)``."""
    t = torch.arange(n_samples, dtype=torch.float64) / SAMPLE_RATE_HZ
    return torch.stack([torch.sin(2.0 * torch.pi * hz * t) for hz in frequencies_hz]).sum(0)


def on_and_off(n_samples: int, on_s: float, off_s: float) -> torch.Tensor:
    """Return a mask ``(n_samples,)`` that is true for ``on_s``, then false for ``off_s``, and so on."""
    t = torch.arange(n_samples, dtype=torch.float64) / SAMPLE_RATE_HZ
    return t % (on_s + off_s) < on_s


def music(n_samples: int, arpeggio: bool, rng: Random) -> torch.Tensor:
    """Return a short piece for plucked strings and a bass, chords or arpeggios: float64 ``(n_samples,)``."""
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
    return torch.from_numpy(piece)


def _sound(kind: str, number: int, sound: torch.Tensor) -> Sound:
    return Sound(f"{kind}{number}", kind, within_one(at_level(sound, SOUND_DB)).float().numpy())


def _slow_envelope(n_samples: int, rng: Random) -> torch.Tensor:
    """Return a loudness that goes up and down every few seconds, as wind and traffic do."""
    points = torch.tensor([rng.uniform(0.05, 1.0) for _ in range(3 + n_samples // SAMPLE_RATE_HZ)])
    return torch.nn.functional.interpolate(points[None, None], size=n_samples, mode="linear")[0, 0]


def _knocks(n_samples: int, rng: Random) -> torch.Tensor:
    """Return short bursts of noise, as of doors, keys and dishes, a few in a second."""
    sound, position = torch.zeros(n_samples), 0
    while position < n_samples:
        length = min(samples_of(rng.uniform(0.01, 0.2)), n_samples - position)
        decay = torch.exp(-torch.arange(length) / (length / rng.uniform(3.0, 8.0)))
        burst = fit_length(rng.choice(synthetic_noises()), length, rng)
        sound[position : position + length] += rng.uniform(0.2, 1.0) * at_level(burst, SOUND_DB) * decay
        position += length + samples_of(rng.expovariate(2.0))
    return sound


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
