"""Decode with FFmpeg (PyAV), packet by packet, at the timestamps of the container."""

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

# FFmpeg also reads lists of other files (concat, HLS, ...): an uploaded list could expose files of the server's disk.
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg"
    ",tta,w64,wav,wv"
)
_HAS_ZERO = frozenset({"matroska", "mov"})  # timestamps start at 0; in other containers they start anywhere
_HAS_TIMES = _HAS_ZERO | {"asf", "avi", "flv", "mpeg", "mpegts"}  # for others, FFmpeg counts samples or bytes
_COUNTED = frozenset({"ape", "flac", "tta", "wv"})  # headers hold exact sample counts; others are rounded or guessed
_CHECKED = frozenset({"flac", "tta", "wavpack"})  # codecs with checksums, which FFmpeg compares only on request
_TAGGED = frozenset({"aac", "mp2", "mp3", "mp3float"})  # codecs without a container: tags stand between frames
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"Xing", b"Info", b"VBRI")
_GAP_S = 0.04  # shorter gaps are ignored: timestamps are rounded, and clocks jitter
_LOST_GAP_S = 0.005  # the same limit after a lost packet
_JUMP_S = 10.0  # a jump ahead of more than this means that the timestamps of a broadcast restarted
_COUNT_SLACK_S = 0.01
_RUN_UP_S = 1.0
_BLOCK_SAMPLES = 1 << 16
_MAX_FAILURES = 100  # consecutive demuxing errors


class NoDecoderError(AudioError):
    """FFmpeg cannot open a file, or finds no audio stream in it."""


@dataclass
class MissingAudio:
    """Missing sound: in ``n`` places, the total seconds, and the time of the first place."""

    n: int = 0
    seconds: float = 0.0
    first_s: float = 0.0

    def add(self, at_s: float, seconds: float) -> None:
        """Add one place."""
        self.first_s = self.first_s if self.n else at_s
        self.n += 1
        self.seconds += seconds

    def describe(self, places: str) -> str:
        """Return one line; ``places`` names the kind of places, such as "packets lost"."""
        return f"{places}: {self.n}, {self.seconds:.2f} s in all, the first at {self.first_s:.2f} s; silence is there"


@dataclass
class PacketReport:
    """Problems found while reading packets.

    ``damaged``: packets that cannot be decoded. ``gaps``: times without packets. ``is_cut``: the last packets cannot be
    decoded, or there are fewer samples than the header declares.
    """

    n_packets: int = 0
    damaged: MissingAudio = field(default_factory=MissingAudio)
    gaps: MissingAudio = field(default_factory=MissingAudio)
    is_cut: bool = False


def read_packets(audio: bytes, builder: WaveformBuilder) -> PacketReport:
    """Add the sound of a file's first audio stream to ``builder``, with silence where sound is missing.

    Raises :class:`NoDecoderError`, and :class:`AudioError` as ``builder`` does.
    """
    with _opened(io.BytesIO(audio)) as (container, stream):
        return _Reader(container, stream, builder).read()


def read_time_range(file: BinaryIO, start_s: float, end_s: float) -> tuple[Waveform, MissingAudio]:
    """Return the sound from ``start_s`` to ``end_s`` of a recording, and what is lost of it; it may end earlier.

    Raises :class:`NoDecoderError`, and :class:`AudioError` if the recording ends before ``start_s``.
    """
    builder = WaveformBuilder(None)
    with _opened(file) as (container, stream):
        reader = _Reader(container, stream, builder, until_s=end_s)
        reader.seek(start_s)
        report = reader.read()
    first, last = samples_of(start_s - reader.begin_s), samples_of(end_s - reader.begin_s)
    if samples_of(builder.seconds) <= first:
        raise AudioError(f"truncated: the recording ends before {start_s:g} s")
    return builder.finish()[0][first:last], report.damaged


@contextmanager
def _opened(file: BinaryIO) -> Generator[tuple[InputContainer, AudioStream]]:
    try:
        with av.open(file, "r", options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.audio:
                raise NoDecoderError("unreadable audio: no audio stream in the file")
            stream = container.streams.audio[0]
            if getattr(stream, "codec_context", None) is None:  # PyAV's type stubs miss this case
                raise NoDecoderError("unreadable audio: no decoder for its codec")
            yield container, stream
    except AudioError:
        raise
    except MemoryError:  # forged sizes in a header cause it too
        raise AudioError("unreadable audio: it asks for more memory than there is") from None
    except (av.error.FFmpegError, ValueError):
        raise NoDecoderError("unreadable audio: no decoder takes it") from None


class _Reader:
    """Reads one stream. Times are seconds from the file's start."""

    def __init__(
        self, container: InputContainer, stream: AudioStream, builder: WaveformBuilder, until_s: float = math.inf
    ):
        self._container, self._stream, self._builder, self._until_s = container, stream, builder, until_s
        self._format = set(container.format.name.split(","))
        self.begin_s = self._now_s = builder.seconds  # not 0 for the second of several joined files
        self._from_s = 0.0  # sound that is lost before this time is not counted
        self._origin_s: float | None = None  # zero of the container's timestamps, set by seek()
        self._tick_s = float(stream.time_base or 0)
        self._shift_s = self.begin_s if self._format & _HAS_ZERO else None  # container's timestamp + shift = our time
        self._lost = MissingAudio()  # since the last frame
        self._report = PacketReport()
        builder.is_float = stream.codec_context.name.startswith("pcm_f")
        self._block = _Block(builder, self._report.damaged)
        if stream.codec_context.name in _CHECKED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}

    def seek(self, start_s: float) -> None:
        """Seek to a little before ``start_s``: codecs need frames to settle. The first frame then sets ``begin_s``."""
        target_s, self._from_s = start_s - _RUN_UP_S, start_s
        if target_s > 0.0:
            self._origin_s = 0.0 if self._format & _HAS_ZERO else (self._stream.start_time or 0) * self._tick_s
            self._container.seek(int((target_s + self._origin_s) * av.time_base))
            self._shift_s = None

    def read(self) -> PacketReport:
        """Read the stream to its end, or to ``until_s``."""
        for packet in self._packets():
            self._report.n_packets += packet.size > 0
            try:
                frames = packet.decode()
            except MemoryError:  # PyAV's MemoryError is an FFmpegError too, but the packet is not damaged
                raise
            except av.error.FFmpegError:
                self._count_lost(packet)
                continue
            for frame in frames:
                self._place(frame)
            if self._now_s >= self._until_s:
                break
        self._block.flush()
        report = self._report
        if self._lost.n:
            report.is_cut = True
        if self._format & _COUNTED:
            counted_s = (self._stream.duration or 0) * self._tick_s
            report.is_cut |= self._builder.seconds - self.begin_s < counted_s - _COUNT_SLACK_S
        return report

    def _packets(self) -> Iterator["av.Packet[AudioStream]"]:
        """Yield the packets; data that the demuxer cannot read are skipped."""
        packets, n_failures = self._container.demux(self._stream), 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except MemoryError:
                raise
            except av.error.FFmpegError as error:
                n_failures += 1
                if not isinstance(error, BlockingIOError):  # that one means "try again"
                    self._lost.add(self._now_s, 0.0)
                if n_failures == _MAX_FAILURES:
                    return
                packets = self._container.demux(self._stream)
                continue
            n_failures = 0
            yield packet

    def _count_lost(self, packet: "av.Packet[AudioStream]") -> None:
        """Count a packet that cannot be decoded, unless it holds no sound (tags, zeros)."""
        content = bytes(packet)
        if self._stream.codec_context.name in _TAGGED:
            if any(tag in content[:64] for tag in _TAGS) or content.endswith(b"\0" * len(content)):
                return
        elif not content:
            return
        self._lost.add(self._now_s, (packet.duration or 0) * self._tick_s)

    def _place(self, frame: av.AudioFrame) -> None:
        """Add a frame at its timestamp. Timestamps that go back or restart are taken as a continuation."""
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
        """Add silence for missing sound, and count it as a gap or as damage."""
        lost, report, at_s = self._lost, self._report, self._now_s
        missing_s = min(missing_s, self._until_s - at_s)
        if missing_s > (_LOST_GAP_S if lost.n else _GAP_S):
            self._block.flush()
            self._builder.add_silence(missing_s)
            self._now_s += missing_s
            if not lost.n:  # without real timestamps, missing samples are damage
                (report.gaps if self._format & _HAS_TIMES else report.damaged).add(at_s, missing_s)
        if lost.n:
            lost_s = max(lost.seconds, missing_s)
            if lost.first_s + lost_s > self._from_s:
                report.damaged.add(lost.first_s, lost_s)
                report.damaged.n += lost.n - 1
            self._lost = MissingAudio()


class _Block:
    """Collects short frames of one format into large blocks, since Python is slow for each frame."""

    def __init__(self, builder: WaveformBuilder, damaged: MissingAudio):
        self._builder, self._damaged, self._fifo = builder, damaged, av.AudioFifo()

    def add(self, frame: av.AudioFrame) -> None:
        """Add a frame."""
        frame.pts = None  # the FIFO would compare it with its own count
        try:
            self._fifo.write(frame)
        except ValueError:  # another format: a file may be several files joined
            self.flush()
            self._fifo = av.AudioFifo()
            self._fifo.write(frame)
        if self._fifo.samples >= _BLOCK_SAMPLES:
            self.flush()

    def flush(self) -> None:
        """Pass the collected frames to the builder."""
        frame = self._fifo.read() if self._fifo.samples else None
        if frame is None:
            return
        samples, rate_hz = _samples(frame), frame.sample_rate
        if not self._builder.is_float and samples.dtype.kind == "f" and np.abs(samples).max() > MAX_PEAK:
            is_too_loud = (np.abs(samples) > MAX_PEAK).any(axis=1)  # a decoder's output for damaged frames
            self._damaged.add(
                self._builder.seconds + int(is_too_loud.argmax()) / rate_hz, int(is_too_loud.sum()) / rate_hz
            )
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
