"""Audio bytes to a mono waveform at 16 kHz, with bounds that hold while decoding."""

import io

import av
import av.error
import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray

from askd_ray.audio.units import SAMPLE_RATE_HZ

Waveform = NDArray[np.float32]
"""Mono samples at 16 kHz in [-1, 1], shape ``(n_samples,)``."""

_MIN_RATE_HZ, _MAX_RATE_HZ = 4_000, 384_000


class AudioError(ValueError):
    """Audio that cannot be used; the message is a reason that fits a quarantine file."""


def decode(audio: bytes, max_s: float | None = None) -> Waveform:
    """Decode a whole audio file to mono float32 at 16 kHz, shape ``(n_samples,)``.

    wav, flac, ogg and mp3 go through libsndfile; all else through FFmpeg (PyAV). Decoding stops as soon as more
    than ``max_s`` seconds have come out, so that a small file cannot become a large array.

    Raises :class:`AudioError`: unreadable, truncated, empty, not finite, or longer than ``max_s``.
    """
    if not audio:
        raise AudioError("empty file")
    try:
        samples, rate_hz = _decode_soundfile(audio, max_s)
    except soundfile.LibsndfileError:
        samples, rate_hz = _decode_av(audio, max_s)
    if samples.shape[0] == 0:
        raise AudioError("no audio in the file")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("samples that are not finite")
    return resample(mono, rate_hz)


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """Resample a mono waveform, shape ``(n_samples,)``, from ``rate_hz`` to 16 kHz (windowed sinc)."""
    if rate_hz == SAMPLE_RATE_HZ:
        return waveform
    return torchaudio.functional.resample(torch.from_numpy(waveform), rate_hz, SAMPLE_RATE_HZ).numpy()


def duration_s(waveform: Waveform) -> float:
    """Return the duration of a waveform at 16 kHz in seconds."""
    return waveform.shape[0] / SAMPLE_RATE_HZ


def _check_rate(rate_hz: int) -> int:
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise AudioError(f"sample rate of {rate_hz} Hz: {_MIN_RATE_HZ} to {_MAX_RATE_HZ} is allowed")
    return rate_hz


def _decode_soundfile(audio: bytes, max_s: float | None) -> tuple[NDArray[np.float32], int]:
    with soundfile.SoundFile(io.BytesIO(audio)) as file:
        rate_hz = _check_rate(file.samplerate)
        declared = file.frames
        limit = declared if max_s is None else min(declared, int(max_s * rate_hz) + 1)
        samples = np.asarray(file.read(limit, dtype="float32", always_2d=True), np.float32)
    _check_length(samples.shape[0], rate_hz, max_s)
    if samples.shape[0] < limit or _wav_is_cut(audio):
        raise AudioError("truncated: the file ends before the audio that its header declares")
    return samples, rate_hz


def _wav_is_cut(audio: bytes) -> bool:
    """Whether a RIFF file is shorter than it says; libsndfile silently corrects its header. Streams declare 0 or -1."""
    declared = int.from_bytes(audio[4:8], "little")
    return audio[:4] == b"RIFF" and 0 < declared < 0xFFFF_FF00 and declared + 8 > len(audio) + 1


def _decode_av(audio: bytes, max_s: float | None) -> tuple[NDArray[np.float32], int]:
    chunks: list[NDArray[np.float32]] = []
    n_samples = 0
    try:
        with av.open(io.BytesIO(audio), "r") as container:
            if not container.streams.audio:
                raise AudioError("no audio stream in the file")
            rate_hz = _check_rate(int(container.streams.audio[0].rate or 0))
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            for frame in container.decode(audio=0):
                for piece in mono.resample(frame):
                    chunks.append(np.asarray(piece.to_ndarray(), np.float32).reshape(-1, 1))
                    n_samples += chunks[-1].shape[0]
                _check_length(n_samples, rate_hz, max_s)
    except AudioError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError):
        raise AudioError("unreadable audio") from None
    return (np.concatenate(chunks) if chunks else np.zeros((0, 1), np.float32)), rate_hz


def _check_length(n_samples: int, rate_hz: int, max_s: float | None) -> None:
    if max_s is not None and n_samples > max_s * rate_hz:
        raise AudioError(f"longer than {max_s:g} s")
