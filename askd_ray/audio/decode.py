"""Decode audio files to mono waveforms at 16 kHz, and report sound that is missing."""

from dataclasses import dataclass, field

import numpy as np

from askd_ray.audio.endings import missing_end, split_joined
from askd_ray.audio.packets import NoDecoderError, read_packets
from askd_ray.audio.plain import read_plain
from askd_ray.audio.waveform import AudioError, Waveform, WaveformBuilder, duration_s

__all__ = ["AudioError", "DecodedAudio", "Waveform", "decode", "duration_s", "read_audio"]

_MAX_LOST_S, _MAX_LOST_SHARE = 2.0, 0.1  # of damaged sound, the larger of both: with more, the text no longer fits
_MAX_PARTS = 100
_ENDS_EARLY = "the file ends or breaks off before its sound does"


@dataclass(frozen=True)
class DecodedAudio:
    """A waveform, shape ``(n_samples,)`` at 16 kHz, and remarks on it.

    ``missing``: sound that is lost ("damaged: ...", "truncated: ..."). ``notes``: what was changed in the rest
    ("gap: ...", "scaled: ...").
    """

    waveform: Waveform
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decode(audio: bytes, max_s: float | None = None) -> Waveform:
    """Decode a complete audio file to mono float32 at 16 kHz, shape ``(n_samples,)``.

    Raises :class:`AudioError` as :func:`read_audio` does, and for any missing sound.
    """
    decoded = read_audio(audio, max_s)
    if decoded.missing:
        raise AudioError(decoded.missing[0])
    return decoded.waveform


def read_audio(audio: bytes, max_s: float | None = None, partial: bool = False) -> DecodedAudio:
    """Decode an audio file; silence replaces damaged parts. ``partial`` accepts files with any amount of missing sound.

    Durations in headers are ignored. Container timestamps are used, and gaps in them become silence. Channels are
    averaged. Decoding stops after more than ``max_s`` seconds, so that a small file cannot become a large array.

    Raises :class:`AudioError`: unreadable, truncated, damaged (more than 2 s and a tenth of the file), not finite,
    longer than ``max_s``, or too many samples to hold. With ``partial``, truncated or damaged files raise nothing.
    """
    if not audio:
        raise AudioError("unreadable audio: the file is empty")
    losses, whole = _Losses(), read_plain(audio, max_s)
    builders = [whole] if whole is not None else _read_parts(audio, max_s, losses)
    if not partial:
        losses.check(builders[-1].seconds)
    finished = [builder.finish() for builder in builders]
    waveform = finished[0][0] if len(finished) == 1 else np.concatenate([waveform for waveform, _ in finished])
    if not len(waveform):
        raise AudioError("unreadable audio: no samples in the file")
    for scale in {scale for _, scale in finished if scale is not None}:
        losses.notes.append(f"scaled: its samples are integers written as floats, and were divided by {scale}")
    return DecodedAudio(waveform, (*losses.truncated, *losses.damaged), tuple(losses.notes))


@dataclass
class _Losses:
    """The missing sound of a file, and notes on the rest."""

    truncated: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    damaged_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    def check(self, seconds: float) -> None:
        """Raise :class:`AudioError` if the file is truncated or too much of it is damaged."""
        if self.truncated:
            raise AudioError(self.truncated[0])
        if self.damaged_s > max(_MAX_LOST_S, _MAX_LOST_SHARE * seconds):
            raise AudioError(self.damaged[0])


def _read_parts(audio: bytes, max_s: float | None, losses: _Losses) -> list[WaveformBuilder]:
    """Read a file, or if it is several files joined, read each of them in order."""
    parts = split_joined(audio)
    if len(parts) > _MAX_PARTS:
        raise AudioError(f"unreadable audio: {len(parts)} files in one, and at most {_MAX_PARTS} are allowed")
    builders: list[WaveformBuilder] = []
    for part in parts:
        begin_s = builders[-1].seconds if builders else 0.0
        builder = read_plain(part, max_s, begin_s)
        if builder is None:
            builder = WaveformBuilder(max_s, begin_s)
            _read_packets(part, builder, losses)
        builders.append(builder)
    return builders


def _read_packets(audio: bytes, builder: WaveformBuilder, losses: _Losses) -> None:
    cut, begin_s = missing_end(audio), builder.seconds
    try:
        report = read_packets(audio, builder)
    except NoDecoderError:
        if cut is not None:
            raise AudioError(f"truncated: {cut}") from None
        raise
    if cut is None and report.is_cut:
        cut = _ENDS_EARLY
    if cut is not None:
        losses.truncated.append(f"truncated: {cut}")
    elif report.n_packets and builder.seconds == begin_s:
        raise AudioError(f"unreadable audio: none of its {report.n_packets} packets can be decoded")
    if report.damaged.n:
        losses.damaged.append(f"damaged: {report.damaged.describe('packets lost')}")
        losses.damaged_s += report.damaged.seconds
    if report.gaps.n:
        losses.notes.append(f"gap: {report.gaps.describe('times without sound')}")
