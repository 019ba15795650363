"""Sound through FFmpeg (PyAV), packet by packet, at the times that the container gives."""

import io
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from askd_ray.audio.units import samples_of
from askd_ray.audio.waveform import MAX_PEAK, AudioError, Waveform, WaveformBuilder

# FFmpeg also reads lists of other files (concat, HLS, ...): whoever may upload one would hear what is on the disk.
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg"
    ",tta,w64,wav,wv"
)
_HAS_ZERO = frozenset({"matroska", "mov"})  # where times count from the beginning; elsewhere they begin anywhere
_HAS_TIMES = _HAS_ZERO | {"asf", "avi", "flv", "mpeg", "mpegts"}  # elsewhere FFmpeg counts samples or bytes
_COUNTED = frozenset({"ape", "flac", "tta", "wv"})  # headers count samples; other durations are rounded or guessed
_CHECKED = frozenset({"flac", "tta", "wavpack"})  # codecs with checksums, which FFmpeg compares only if told to
_TAGGED = frozenset({"aac", "mp2", "mp3", "mp3float"})  # codecs without a container: tags lie between their frames
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"Xing", b"Info", b"VBRI")
_GAP_S = 0.04  # times are rounded, and clocks jitter: less is no gap
_LOST_GAP_S = 0.005  # behind a packet that is lost
_JUMP_S = 10.0  # so far ahead, the times of a broadcast begin anew
_COUNT_SLACK_S = 0.01
_RUN_UP_S = 1.0
_BLOCK_SAMPLES = 1 << 16
_MAX_FAILURES = 100  # of the container, one after the other


class NoDecoderError(AudioError):
    """FFmpeg does not open a file, or finds no sound in it."""


@dataclass
class Missing:
    """Sound that is not there: in ``n`` places, for how long, and when the first begins."""

    n: int = 0
    seconds: float = 0.0
    first_s: float = 0.0

    def add(self, at_s: float, seconds: float) -> None:
        """Count one place more."""
        self.first_s = self.first_s if self.n else at_s
        self.n += 1
        self.seconds += seconds

    def describe(self, what: str) -> str:
        """Return it in words; ``what`` are the places."""
        return f"{what}: {self.n}, {self.seconds:.2f} s in all, the first at {self.first_s:.2f} s; silence is there"


@dataclass
class Findings:
    """What was found on the way.

    ``damaged`` are packets that cannot be decoded, ``gaps`` times without packets. ``is_cut``: the last packets cannot
    be decoded, or there are fewer samples than the header counts.
    """

    n_packets: int = 0
    damaged: Missing = field(default_factory=Missing)
    gaps: Missing = field(default_factory=Missing)
    is_cut: bool = False


def read_packets(audio: bytes, builder: WaveformBuilder) -> Findings:
    """Add the sound of the first audio stream of a file to ``builder``, with silence where there is none.

    Raises :class:`NoDecoderError`, and :class:`AudioError` as ``builder`` does.
    """
    with _opened(io.BytesIO(audio)) as (container, stream):
        return _Reader(container, stream, builder).read()


def read_stretch(file: BinaryIO, start_s: float, end_s: float) -> tuple[Waveform, Missing]:
    """Return what lies from ``start_s`` to ``end_s`` in a recording, and what is lost of it; it may end earlier.

    Raises :class:`NoDecoderError`, and :class:`AudioError` where there is no such sound.
    """
    builder = WaveformBuilder(None)
    with _opened(file) as (container, stream):
        reader = _Reader(container, stream, builder, until_s=end_s)
        reader.seek(start_s)
        found = reader.read()
    first, last = samples_of(start_s - reader.begin_s), samples_of(end_s - reader.begin_s)
    if samples_of(builder.seconds) <= first:
        raise AudioError(f"truncated: the recording ends before {start_s:g} s")
    return builder.finish()[0][first:last], found.damaged


@contextmanager
def _opened(file: BinaryIO) -> Generator[tuple[InputContainer, AudioStream]]:
    try:
        with av.open(file, "r", options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.audio:
                raise NoDecoderError("unreadable audio: no audio stream in the file")
            stream = container.streams.audio[0]
            if getattr(stream, "codec_context", None) is None:  # PyAV's types do not know this case
                raise NoDecoderError("unreadable audio: no decoder for its codec")
            yield container, stream
    except AudioError:
        raise
    except (av.error.FFmpegError, ValueError):
        raise NoDecoderError("unreadable audio: no decoder takes it") from None


class _Reader:
    """Reads one stream. Times are seconds from the file's start."""

    def __init__(
        self, container: InputContainer, stream: AudioStream, builder: WaveformBuilder, until_s: float = math.inf
    ):
        self._container, self._stream, self._builder, self._until_s = container, stream, builder, until_s
        self._format = set(container.format.name.split(","))
        self.begin_s = self._now_s = builder.seconds  # a file may be joined of several
        self._from_s = 0.0  # what is lost before is no matter
        self._origin_s: float | None = None  # of the container's times, once a place is sought
        self._tick_s = float(stream.time_base or 0)
        self._shift_s = self.begin_s if self._format & _HAS_ZERO else None  # from the container's times to ours
        self._lost = Missing()  # since the last frame
        self._found = Findings()
        builder.is_float = stream.codec_context.name.startswith("pcm_f")
        self._block = _Block(builder, self._found.damaged)
        if stream.codec_context.name in _CHECKED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}

    def seek(self, start_s: float) -> None:
        """Begin a little before a time: codecs need frames to settle. ``begin_s`` is where, after the first frame."""
        target_s, self._from_s = start_s - _RUN_UP_S, start_s
        if target_s > 0.0:
            self._origin_s = 0.0 if self._format & _HAS_ZERO else (self._stream.start_time or 0) * self._tick_s
            self._container.seek(int((target_s + self._origin_s) * av.time_base))
            self._shift_s = None

    def read(self) -> Findings:
        """Read it to its end, or to ``until_s``."""
        for packet in self._packets():
            self._found.n_packets += packet.size > 0
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self._lose(packet)
                continue
            for frame in frames:
                self._place(frame)
            if self._now_s >= self._until_s:
                break
        self._block.flush()
        found = self._found
        if self._lost.n:
            found.is_cut = True
        if self._format & _COUNTED:
            counted_s = (self._stream.duration or 0) * self._tick_s
            found.is_cut |= self._builder.seconds - self.begin_s < counted_s - _COUNT_SLACK_S
        return found

    def _packets(self) -> Iterator["av.Packet[AudioStream]"]:
        """Yield the packets; what the container cannot make sense of is skipped."""
        packets, n_failures = self._container.demux(self._stream), 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                n_failures += 1
                if not isinstance(error, BlockingIOError):  # it looks for its next packet
                    self._lost.add(self._now_s, 0.0)
                if n_failures == _MAX_FAILURES:
                    return
                packets = self._container.demux(self._stream)
                continue
            n_failures = 0
            yield packet

    def _lose(self, packet: "av.Packet[AudioStream]") -> None:
        """Count a packet that cannot be decoded, unless it holds no sound."""
        content = bytes(packet)
        if self._stream.codec_context.name in _TAGGED:
            if any(tag in content[:64] for tag in _TAGS) or content.endswith(b"\0" * len(content)):
                return
        elif not content:
            return
        self._lost.add(self._now_s, (packet.duration or 0) * self._tick_s)

    def _place(self, frame: av.AudioFrame) -> None:
        """Add a frame where its time says. Times that go back, or begin anew, are taken to go on."""
        if frame.pts is not None:
            at_s = frame.pts * self._tick_s
            if self._shift_s is None:
                if self._origin_s is not None:
                    self.begin_s = self._now_s = at_s - self._origin_s
                self._shift_s = self._now_s - at_s
            missing_s = at_s + self._shift_s - self._now_s
            if self._lost.n or not -_GAP_S <= missing_s <= _GAP_S:
                restarts = missing_s > _JUMP_S and self._format & (_HAS_TIMES - _HAS_ZERO)
                if missing_s < -_GAP_S or restarts:
                    self._shift_s, missing_s = self._now_s - at_s, 0.0
                self._fill(missing_s)
        elif self._lost.n:
            self._fill(0.0)
        self._block.add(frame)
        self._now_s += frame.samples / frame.sample_rate

    def _fill(self, missing_s: float) -> None:
        """Add silence where there is no sound, and say of what kind it is."""
        lost, found, at_s = self._lost, self._found, self._now_s
        missing_s = min(missing_s, self._until_s - at_s)
        if missing_s > (_LOST_GAP_S if lost.n else _GAP_S):
            self._block.flush()
            self._builder.add_silence(missing_s)
            self._now_s += missing_s
            if not lost.n:  # where samples are counted, those that do not come are lost
                (found.gaps if self._format & _HAS_TIMES else found.damaged).add(at_s, missing_s)
        if lost.n:
            lost_s = max(lost.seconds, missing_s)
            if lost.first_s + lost_s > self._from_s:
                found.damaged.add(lost.first_s, lost_s)
                found.damaged.n += lost.n - 1
            self._lost = Missing()


class _Block:
    """Frames of one kind, until there are enough of them: Python is slow, and frames are short."""

    def __init__(self, builder: WaveformBuilder, damaged: Missing):
        self._builder, self._damaged, self._fifo = builder, damaged, av.AudioFifo()

    def add(self, frame: av.AudioFrame) -> None:
        """Add a frame."""
        frame.pts = None  # the queue would compare it with its own count
        try:
            self._fifo.write(frame)
        except ValueError:  # of another kind: files may be joined of several
            self.flush()
            self._fifo = av.AudioFifo()
            self._fifo.write(frame)
        if self._fifo.samples >= _BLOCK_SAMPLES:
            self.flush()

    def flush(self) -> None:
        """Hand on what is there."""
        frame = self._fifo.read() if self._fifo.samples else None
        if frame is None:
            return
        samples, rate_hz = _samples(frame), frame.sample_rate
        if not self._builder.is_float and samples.dtype.kind == "f" and np.abs(samples).max() > MAX_PEAK:
            is_bang = (np.abs(samples) > MAX_PEAK).any(axis=1)  # what a codec makes of damaged frames
            self._damaged.add(self._builder.seconds + int(is_bang.argmax()) / rate_hz, int(is_bang.sum()) / rate_hz)
            samples = np.clip(samples, -1.0, 1.0)
        self._builder.add(samples, rate_hz)


def _samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    """Return a frame's samples in [-1, 1], shape ``(n_samples, n_channels)``."""
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    if array.dtype.kind == "f":
        return np.asarray(array, np.float32)
    if array.dtype == np.uint8:
        return (np.asarray(array, np.float32) - np.float32(128)) / np.float32(128)
    return np.asarray(array, np.float32) / np.float32(1 << (8 * array.dtype.itemsize - 1))
