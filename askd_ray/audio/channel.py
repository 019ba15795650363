"""Read one channel of a recording, or of a chunk of it: in calls each channel holds one speaker."""

import io
from typing import BinaryIO

import av
import av.error
import numpy as np
import soundfile
from numpy.typing import NDArray

from askd_ray.audio.decode import AudioError

_SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"})  # exactly, by libsndfile
# FFmpeg also reads lists of other files (concat, HLS, ...), which are not recordings.
_CONTAINERS = "aac,aiff,amr,amrnb,amrwb,asf,au,caf,flac,matroska,mov,mp3,mpegts,ogg,w64,wav"
_SLACK_S = 0.1  # a chunk may end this much after the end of its recording: times are rounded
_RUN_UP_S = 1.0  # decoded and dropped before the start: codecs need some frames to settle after a seek


def read_channel(file: BinaryIO, channel: int, start_s: float, end_s: float | None, max_s: float) -> bytes:
    """Return one channel, counted from 0, of a recording from ``start_s`` to ``end_s`` as a WAV file at its own rate.

    ``file`` is the recording, open and seekable. Without ``end_s`` it is read to its end, but not for much more than
    ``max_s``: the caller that decodes the result then sees that it is too long.

    Raises :class:`AudioError`: unreadable, no such channel, longer than ``max_s``, or shorter than ``end_s``.
    """
    if end_s is not None and end_s - start_s > max_s:
        raise AudioError(f"longer than {max_s:g} s")
    until_s = start_s + max_s + _SLACK_S if end_s is None else end_s
    decoded = _read_soundfile(file, channel, start_s, until_s)
    if decoded is None:
        file.seek(0)
        decoded = _read_av(file, channel, start_s, until_s)
    samples, rate_hz = decoded
    if samples.size == 0 or (end_s is not None and samples.size < (end_s - start_s - _SLACK_S) * rate_hz):
        raise AudioError(f"truncated: the recording ends before {start_s if end_s is None else end_s:g} s")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _check_channel(channel: int, n_channels: int) -> None:
    if channel >= n_channels:
        raise AudioError(f"no channel {channel}: the recording has {n_channels}, counted from 0")


def _read_soundfile(
    file: BinaryIO, channel: int, start_s: float, until_s: float
) -> tuple[NDArray[np.float32], int] | None:
    try:
        with soundfile.SoundFile(file) as recording:
            if recording.format not in _SEEKABLE:
                return None
            _check_channel(channel, recording.channels)
            first, last = (min(round(s * recording.samplerate), recording.frames) for s in (start_s, until_s))
            recording.seek(first)
            samples = recording.read(last - first, dtype="float32", always_2d=True)
            return np.asarray(samples, np.float32)[:, channel], recording.samplerate
    except soundfile.LibsndfileError:
        return None


def _read_av(file: BinaryIO, channel: int, start_s: float, until_s: float) -> tuple[NDArray[np.float32], int]:
    pieces: list[NDArray[np.float32]] = []
    try:
        with av.open(file, "r", options={"format_whitelist": _CONTAINERS}) as container:
            stream = container.streams.audio[0]
            rate_hz = int(stream.rate or 0)
            _check_channel(channel, stream.layout.nb_channels)
            first, last = round(start_s * rate_hz), round(until_s * rate_hz)
            planes = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate_hz)
            container.seek(int(max(start_s - _RUN_UP_S, 0.0) * av.time_base))
            for frame in container.decode(audio=0):
                begin = round((frame.time or 0.0) * rate_hz)
                if begin >= last:
                    break
                for piece in planes.resample(frame):
                    samples = np.asarray(piece.to_ndarray(), np.float32)[channel]
                    pieces.append(samples[max(first - begin, 0) : max(last - begin, 0)])
                    begin += samples.shape[0]
    except AudioError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError):
        raise AudioError("unreadable audio: no decoder takes it") from None
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate_hz
