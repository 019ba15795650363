"""Cut a chunk out of a long recording without decoding the rest of it."""

import io
from typing import BinaryIO

import numpy as np
import soundfile

from askd_ray.audio.decode import AudioError, Waveform
from askd_ray.audio.endings import split_joined
from askd_ray.audio.packets import read_time_range
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.waveform import WaveformBuilder

_SLACK_S = 0.1  # a chunk may end this much after the end of its recording: times are rounded
_SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"})  # exactly, by libsndfile
_COMPRESSED_WAV = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"})


def cut(file: BinaryIO, start_s: float, end_s: float | None, max_s: float) -> bytes:
    """Return the chunk from ``start_s`` to ``end_s`` (None: the end of the recording) as FLAC, mono at 16 kHz.

    ``file`` is the recording, open and seekable.

    Raises :class:`~askd_ray.audio.decode.AudioError`: unreadable, damaged, outside the recording, or longer than
    ``max_s``.
    """
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise AudioError(f"unreadable audio: no chunk from {start_s:g} s to {end_s:g} s")
    if end_s is not None and end_s - start_s > max_s:
        raise AudioError(f"longer than {max_s:g} s")
    until_s = start_s + max_s + _SLACK_S if end_s is None else end_s
    waveform = _read_seekable(file, start_s, until_s)
    if waveform is None:
        file.seek(0)
        waveform, lost = read_time_range(file, start_s, until_s)
        if lost.n:
            raise AudioError(f"damaged: {lost.describe('packets lost')}")
    if len(waveform) == 0:
        raise AudioError(f"truncated: the recording ends before {start_s:g} s")
    if end_s is not None and len(waveform) < samples_of(end_s - start_s - _SLACK_S):
        raise AudioError(f"truncated: the recording ends before {end_s:g} s")
    return encode_flac(waveform)


def encode_flac(waveform: Waveform) -> bytes:
    """Return a waveform at 16 kHz, shape ``(n_samples,)``, as a 16-bit FLAC file; samples beyond 1 are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _read_seekable(file: BinaryIO, start_s: float, until_s: float) -> Waveform | None:
    """Read a chunk with libsndfile; return None if libsndfile cannot seek in this file to the exact sample."""
    if file.read(4) == b"OggS":
        n_streams = len(split_joined(b"OggS" + file.read()))
        if n_streams > 1:
            raise AudioError(f"unreadable audio: {n_streams} Ogg streams in one file; its timestamps restart in each")
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as recording:
            if recording.format not in _SEEKABLE or recording.subtype in _COMPRESSED_WAV:
                return None
            first, last = round(start_s * recording.samplerate), round(until_s * recording.samplerate)
            if last > recording.frames:  # the header's count, which may be wrong
                return None
            recording.seek(first)
            samples = np.asarray(recording.read(last - first, dtype="float32", always_2d=True), np.float32)
            if len(samples) < last - first:
                return None
            builder = WaveformBuilder(None)
            builder.is_float = recording.subtype in ("FLOAT", "DOUBLE")
            builder.add(samples, recording.samplerate)
    except soundfile.LibsndfileError:
        return None
    return builder.finish()[0]
