"""Noises and room impulse responses, from files or synthetic. Each process reads or makes each once, read-only."""

import glob
from functools import lru_cache
from pathlib import Path
from random import Random

import soundfile
import torch

from askd_ray.audio.decode import AudioError, decode
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ, samples_of
from askd_ray.config.augment import Augment
from askd_ray.errors import AskdError

# (exponent of the amplitude over frequency, lowest and highest frequency in Hz)
_NOISES = (
    (0.0, 0, 8000),  # white
    (-0.5, 20, 8000),  # pink: power falls as 1/f
    (-1.0, 20, 8000),  # brown: power falls as 1/f^2
    (0.0, 50, 500),  # engines, wind
    (0.0, 500, 2000),  # the band of vowels
    (0.0, 2000, 8000),  # hiss, water
)


def check_sounds(settings: Augment) -> None:
    """Check that the file patterns of a recipe match sound files, without decoding them.

    Raises :class:`AskdError` when a pattern matches no file, or a file that is no sound.
    """
    check_sound_files("augment.noise.files", settings.noise.files)
    check_sound_files("augment.reverb.files", settings.reverb.files)


def check_sound_files(field: str, pattern: str | None) -> None:
    """Check that the pattern of a recipe's ``field`` matches sound files; None always passes.

    Raises :class:`AskdError` when it matches no file, or a file that is no sound.
    """
    if pattern is None:
        return
    where = f"{field} = {pattern!r}"
    paths = _matching(pattern)
    if not paths:
        raise AskdError(f"{where} matches no file: write a pattern such as FOLDER/*.flac")
    for path in paths:
        try:
            n_frames = soundfile.info(path).frames
        except soundfile.LibsndfileError:
            n_frames = 0
        if n_frames == 0:
            raise AskdError(f"{where} matches {path}, which is no sound: wav, flac, ogg and mp3 are read")


@lru_cache(maxsize=8)
def sound_files(pattern: str) -> tuple[Path, ...]:
    """Return the files that match a pattern, sorted by name.

    Raises :class:`AskdError` when there are none.
    """
    paths = _matching(pattern)
    if not paths:
        raise AskdError(f"no file matches {pattern}")
    return paths


@lru_cache(maxsize=1024)
def recording(path: Path) -> torch.Tensor:
    """Return a sound file as mono at 16 kHz, shape ``(n_samples,)``.

    Raises :class:`AskdError` when it cannot be read.
    """
    try:
        return torch.from_numpy(decode(path.read_bytes()))
    except (AudioError, OSError) as error:
        raise AskdError(f"{path} cannot be read as a noise or a room: {error}") from None


def draw_noise(files: str | None, rng: Random) -> torch.Tensor:
    """Draw one of the noise files that match a pattern, or a synthetic noise.

    Raises :class:`AskdError` when the file cannot be read.
    """
    return rng.choice(synthetic_noises()) if files is None else recording(rng.choice(sound_files(files)))


def draw_room(files: str | None, rt60_s: tuple[float, float], rng: Random) -> torch.Tensor:
    """Draw one of the impulse responses that match a pattern, or a synthetic one with an RT60 within ``rt60_s``.

    It begins with the direct sound. Raises :class:`AskdError` when the file cannot be read.
    """
    if files is None:
        drawn_s = rng.uniform(*rt60_s)  # seconds
        return synthetic_room(drawn_s, torch.Generator().manual_seed(rng.getrandbits(63)))
    room = recording(rng.choice(sound_files(files)))
    return room[int(room.abs().argmax()) :]  # samples before the direct sound would only delay the clip


@lru_cache(maxsize=2)
def synthetic_noises(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return stationary noises at 16 kHz, each ``(n_samples,)``, of 33 s: white, pink, brown, and three bands."""
    n_samples = 1 << (PADDED_SAMPLES - 1).bit_length()  # longer than any clip, and a power of two for the FFT
    white = torch.randn(len(_NOISES), n_samples, generator=torch.Generator().manual_seed(seed))
    frequencies = torch.fft.rfftfreq(n_samples, 1.0 / SAMPLE_RATE_HZ)
    gains = [f.pow(slope) * (f >= low) * (f <= high) for slope, low, high in _NOISES for f in [frequencies]]
    shaped = torch.fft.rfft(white) * torch.nan_to_num(torch.stack(gains), posinf=0.0)
    return torch.fft.irfft(shaped, n=n_samples).unbind()


def synthetic_room(rt60_s: float, generator: torch.Generator) -> torch.Tensor:
    """Return a room impulse response at 16 kHz: the direct sound, then noise that decays by 60 dB within ``rt60_s``.

    Polack's model of the late field (1988). Its energy equals that of the direct sound, as at the critical distance.
    """
    n_samples = samples_of(rt60_s)
    decay = torch.logspace(0.0, -3.0, n_samples)  # amplitude: -60 dB is 1/1000
    response = torch.randn(n_samples, generator=generator) * decay
    response[0] = torch.linalg.vector_norm(response[1:])
    return response


def _matching(pattern: str) -> tuple[Path, ...]:
    return tuple(path for name in sorted(glob.glob(pattern, recursive=True)) if (path := Path(name)).is_file())
