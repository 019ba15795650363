"""A stretch of a long recording, without decoding the rest of it."""

import io
from typing import BinaryIO

import av
import av.error
import numpy as np
import soundfile
from numpy.typing import NDArray

from askd_ray.audio.decode import AudioError, Waveform, resample
from askd_ray.audio.units import SAMPLE_RATE_HZ

_SLACK_S = 0.1  # how far behind the end of its recording a stretch may end: times are rounded
_RUN_UP_S = 1.0  # decoded and dropped before the start: codecs need frames to settle after a jump


def cut(file: BinaryIO, start_s: float, end_s: float | None, max_s: float) -> bytes:
    """Return the stretch from ``start_s`` to ``end_s`` (None: the end of the recording) as FLAC, mono at 16 kHz.

    ``file`` is the recording, open for reading here and there.

    Raises :class:`~askd_ray.audio.decode.AudioError`: unreadable, outside the recording, or longer than ``max_s``.
    """
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise AudioError(f"unreadable audio: no stretch from {start_s:g} s to {end_s:g} s")
    if end_s is not None and end_s - start_s > max_s:
        raise AudioError(f"longer than {max_s:g} s")
    wanted_s = max_s + _SLACK_S if end_s is None else end_s - start_s
    try:
        samples, rate_hz = _read_soundfile(file, start_s, wanted_s)
    except soundfile.LibsndfileError:
        file.seek(0)
        samples, rate_hz = _read_av(file, start_s, wanted_s)
    if end_s is not None and samples.shape[0] < (wanted_s - _SLACK_S) * rate_hz:
        raise AudioError(f"truncated: the recording ends before {end_s:g} s")
    if samples.shape[0] == 0:
        raise AudioError(f"truncated: the recording ends before {start_s:g} s")
    return encode_flac(resample(samples, rate_hz))


def encode_flac(waveform: Waveform) -> bytes:
    """Return a waveform at 16 kHz, shape ``(n_samples,)``, as a FLAC file of 16 bits; what is beyond 1 is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _read_soundfile(file: BinaryIO, start_s: float, wanted_s: float) -> tuple[Waveform, int]:
    with soundfile.SoundFile(file) as recording:
        rate_hz = recording.samplerate
        recording.seek(min(round(start_s * rate_hz), recording.frames))
        samples = recording.read(round(wanted_s * rate_hz), dtype="float32", always_2d=True)
    return np.asarray(samples, np.float32).mean(axis=1, dtype=np.float32), rate_hz


def _read_av(file: BinaryIO, start_s: float, wanted_s: float) -> tuple[Waveform, int]:
    pieces: list[NDArray[np.float32]] = []
    try:
        with av.open(file, "r") as container:
            rate_hz = int(container.streams.audio[0].rate or 0)
            first, last = round(start_s * rate_hz), round((start_s + wanted_s) * rate_hz)
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            container.seek(int(max(start_s - _RUN_UP_S, 0.0) * av.time_base))
            for frame in container.decode(audio=0):
                begin = round((frame.time or 0.0) * rate_hz)
                if begin >= last:
                    break
                for piece in mono.resample(frame):
                    samples = np.asarray(piece.to_ndarray(), np.float32).reshape(-1)
                    pieces.append(samples[max(first - begin, 0) : max(last - begin, 0)])
                    begin += samples.shape[0]
    except (av.error.FFmpegError, ValueError, IndexError):
        raise AudioError("unreadable audio: no decoder takes it") from None
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate_hz
