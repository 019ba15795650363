"""Helper of the decoding tests: audio files of many encoders, and damage to them."""

import contextlib
import io
import struct

import av
import av.error
import numpy as np
import soundfile
from numpy.typing import NDArray

Sound = NDArray[np.float32]
NO_XING = {"write_xing": "0", "id3v2_version": "0"}


class Pipe:
    """A file without seeking, as a pipe: headers cannot be updated at the end."""

    def __init__(self) -> None:
        self.content = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self.content.write(data)


def sweep(seconds: float, rate_hz: int = 16_000) -> Sound:
    """Return a sound without repetition: a sweep from 200 Hz upwards, in [-0.5, 0.5]."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (200 * t + 900 / max(seconds, 1.0) * t**2))).astype(np.float32)


def by_soundfile(samples: Sound, container: str, subtype: str | None = None, rate_hz: int = 16_000) -> bytes:
    """Encode with libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def noise_file(
    seconds: float = 0.5, peak: float = 0.5, container: str = "WAV", subtype: str = "PCM_16", seed: int = 0
) -> bytes:
    """Encode noise of a loudness and length."""
    noise = np.random.default_rng(seed).uniform(-peak, peak, int(seconds * 16_000)).astype(np.float32)
    return by_soundfile(noise, container, subtype)


def stereo_file(seconds: float = 1.0, container: str = "WAV") -> bytes:
    """Encode two channels of noise, each with a seed of its own."""
    noise = [np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * 16_000)) for seed in (0, 1)]
    return by_soundfile(np.stack(noise, axis=1).astype(np.float32), container)


def by_ffmpeg(
    samples: Sound,
    container: str,
    codec: str,
    rate_hz: int = 16_000,
    piped: bool = False,
    gap_s: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode with FFmpeg, into a pipe or a file. ``gap_s`` (start, length) is a gap in the timestamps."""
    pipe, buffer = Pipe(), io.BytesIO()
    with av.open(pipe if piped else buffer, "w", format=container, options=options or {}) as out:
        stream = out.add_stream(codec, rate=48_000 if codec == "libopus" else rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32_767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate, frame.pts = rate_hz, 0
        size = stream.codec_context.frame_size
        fit = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate, frame_size=size or 1024)
        for piece in [*fit.resample(frame), *fit.resample(None), None]:
            for packet in stream.encode(piece):
                if gap_s is not None and float(packet.pts * packet.time_base) >= gap_s[0]:
                    shift = round(gap_s[1] / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                out.mux(packet)
    return pipe.content.getvalue() if piped else buffer.getvalue()


def wav_declaring(samples: Sound, data_size: int, rate_hz: int = 16_000) -> bytes:
    """Return a 16-bit WAV file whose headers declare ``data_size`` bytes of sound."""
    form = struct.pack("<HHIIHH", 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    head = b"RIFF" + struct.pack("<I", (36 + data_size) % 2**32) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", data_size) + (samples * 32_767).astype("<i2").tobytes()


def vbr_mp3(samples: Sound, rate_hz: int = 16_000) -> bytes:
    """Return an MP3 of variable bit rate without the header with the length, as encoders write to a pipe."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    mp3 = buffer.getvalue()
    header = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    assert header > 0
    return mp3[mp3.index(mp3[:2], header + 150) :]  # the header fills a frame of its own


def mp3_in_wav(mp3: bytes, rate_hz: int = 16_000) -> bytes:
    """Return a WAV file that holds MP3."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate_hz, 4_000, 1, 0, 12, 1, 2, 144, 1, 0)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(mp3)) + mp3
    return b"RIFF" + struct.pack("<I", len(body)) + body


def float_wav(samples: Sound, scale: float, rate_hz: int = 16_000) -> bytes:
    """Return a WAV file of floats that are ``scale`` times too large."""
    return by_soundfile(samples * np.float32(scale), "WAV", "FLOAT", rate_hz)


def flac_declaring(flac: bytes, n_samples: int) -> bytes:
    """Return a FLAC file whose header declares ``n_samples``; encoders write 0 to a pipe."""
    changed = bytearray(flac)
    number = int.from_bytes(changed[18:26], "big") >> 36 << 36 | n_samples
    changed[18:26] = number.to_bytes(8, "big")
    return bytes(changed)


def damaged(audio: bytes, at: float = 0.5, n_bytes: int = 40) -> bytes:
    """Return a file with ``n_bytes`` overwritten by noise, at the share ``at`` of its length."""
    start = int(len(audio) * at)
    noise = np.random.default_rng(0).integers(0, 256, n_bytes, np.uint8).tobytes()
    return audio[:start] + noise + audio[start + n_bytes :]


def without_end(audio: bytes, kept: float = 0.6) -> bytes:
    """Return the first part of a file, ``kept`` of its length."""
    return audio[: int(len(audio) * kept)]


def ogg_pages(ogg: bytes) -> list[bytes]:
    """Return the pages of an Ogg file."""
    return [b"OggS" + page for page in ogg.split(b"OggS")[1:]]


def seconds_by_ffmpeg(audio: bytes) -> float:
    """Return the seconds of sound that FFmpeg decodes from a file: the sum of its frames."""
    seconds = 0.0
    with av.open(io.BytesIO(audio)) as container, contextlib.suppress(BlockingIOError):  # it waits for more
        for packet in container.demux(container.streams.audio[0]):
            with contextlib.suppress(av.error.FFmpegError):  # damaged packets fail in any way: even PatchWelcomeError
                seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
    return seconds
