"""Audio bytes to a mono waveform at 16 kHz, with bounds that hold while decoding."""

import io

import av
import av.error
import numpy as np
import soundfile
from av.container import InputContainer
from numpy.typing import NDArray

from askd_ray.audio.units import SAMPLE_RATE_HZ

Waveform = NDArray[np.float32]
"""Mono samples at 16 kHz in [-1, 1], shape ``(n_samples,)``."""

_MIN_RATE_HZ, _MAX_RATE_HZ = 4_000, 384_000
_MAX_SAMPLES = 1 << 28  # over all channels, before resampling: 1 GB, or 46 minutes of stereo at 48 kHz
_TRUNCATED = "truncated: the file ends or breaks off before the audio that its header declares"
# FFmpeg also reads lists of other files (concat, HLS, ...): whoever may upload one would hear what is on the disk.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
)
_SLACK_S = 0.25  # containers round their duration, and encoders pad


class AudioError(ValueError):
    """Audio that cannot be used. The message is a reason that fits a quarantine file, and after a colon its detail."""


def decode(audio: bytes, max_s: float | None = None) -> Waveform:
    """Decode a whole audio file to mono float32 at 16 kHz, shape ``(n_samples,)``.

    wav, flac, ogg and mp3 go through libsndfile; other containers of sound through FFmpeg (PyAV). Decoding stops as
    soon as more than ``max_s`` seconds have come out, so that a small file cannot become a large array.

    Raises :class:`AudioError`: unreadable, truncated, empty, not finite, longer than ``max_s``, or too
    many samples to hold.
    """
    if not audio:
        raise AudioError("unreadable audio: the file is empty")
    try:
        samples, rate_hz = _decode_soundfile(audio, max_s)
    except soundfile.LibsndfileError:
        samples, rate_hz = _decode_av(audio, max_s)
    if _riff_is_cut(audio):
        raise AudioError(_TRUNCATED)
    if samples.shape[0] == 0:
        raise AudioError("unreadable audio: no samples in the file")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise AudioError("not finite: the samples hold NaN or infinity")
    return resample(mono, rate_hz)


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """Resample a mono waveform, shape ``(n_samples,)``, from ``rate_hz`` to 16 kHz (windowed sinc)."""
    if rate_hz == SAMPLE_RATE_HZ:
        return waveform
    import torch  # seconds: what is refused before a clip needs it is refused at once
    import torchaudio.functional

    return torchaudio.functional.resample(torch.from_numpy(waveform), rate_hz, SAMPLE_RATE_HZ).numpy()


def duration_s(waveform: Waveform) -> float:
    """Return the duration of a waveform at 16 kHz in seconds."""
    return waveform.shape[0] / SAMPLE_RATE_HZ


def _check_rate(rate_hz: int) -> int:
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise AudioError(f"unreadable audio: {rate_hz} Hz, and {_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz are allowed")
    return rate_hz


def _decode_soundfile(audio: bytes, max_s: float | None) -> tuple[NDArray[np.float32], int]:
    with soundfile.SoundFile(io.BytesIO(audio)) as file:
        rate_hz = _check_rate(file.samplerate)
        declared = file.frames
        limit = declared if max_s is None else min(declared, int(max_s * rate_hz) + 1)
        _check_memory(limit * file.channels)
        try:
            samples = np.asarray(file.read(limit, dtype="float32", always_2d=True), np.float32)
        except soundfile.LibsndfileError:  # the header was fine: what follows it is cut or damaged
            raise AudioError(_TRUNCATED) from None
    _check_length(samples.shape[0], rate_hz, max_s)
    if samples.shape[0] < limit:
        raise AudioError(_TRUNCATED)
    return samples, rate_hz


def _riff_is_cut(audio: bytes) -> bool:
    """Whether a RIFF file is shorter than it says; decoders silently take what is there. Streams declare 0 or -1."""
    declared = int.from_bytes(audio[4:8], "little")
    return audio[:4] == b"RIFF" and 0 < declared < 0xFFFF_FF00 and declared + 8 > len(audio) + 1


def _decode_av(audio: bytes, max_s: float | None) -> tuple[NDArray[np.float32], int]:
    chunks: list[NDArray[np.float32]] = []
    n_samples = 0
    try:
        with av.open(io.BytesIO(audio), "r", options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.audio:
                raise AudioError("unreadable audio: no audio stream in the file")
            rate_hz = _check_rate(int(container.streams.audio[0].rate or 0))
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            for frame in container.decode(audio=0):
                for piece in mono.resample(frame):
                    chunks.append(np.asarray(piece.to_ndarray(), np.float32).reshape(-1, 1))
                    n_samples += chunks[-1].shape[0]
                _check_length(n_samples, rate_hz, max_s)
                _check_memory(n_samples)
            if n_samples / rate_hz < _declared_s(container) - _SLACK_S:
                raise AudioError(_TRUNCATED)
    except AudioError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError):
        raise AudioError("unreadable audio: no decoder takes it") from None
    return (np.concatenate(chunks) if chunks else np.zeros((0, 1), np.float32)), rate_hz


def _declared_s(container: InputContainer) -> float:
    """Return the duration in the header of a sound file, or 0. Where there is none, FFmpeg only guesses it."""
    declares = {"matroska", "mov"} & set(container.format.name.split(","))
    alone = len(container.streams) == 1  # beside a picture, the duration may be the picture's
    return (container.duration or 0) / av.time_base if declares and alone else 0.0


def _check_memory(n_samples: int) -> None:
    if n_samples > _MAX_SAMPLES:  # a bound in seconds alone would let a small file of silence at 384 kHz take 20 GB
        raise AudioError(f"too many samples: at most {_MAX_SAMPLES} over all channels are allowed")


def _check_length(n_samples: int, rate_hz: int, max_s: float | None) -> None:
    if max_s is not None and n_samples > max_s * rate_hz:
        raise AudioError(f"longer than {max_s:g} s")
