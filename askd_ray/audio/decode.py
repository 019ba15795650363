"""Audio files to waveforms: mono at 16 kHz, whole, or with a word on what is missing."""

from dataclasses import dataclass, field

import numpy as np

from askd_ray.audio.endings import missing_end, split_joined
from askd_ray.audio.packets import NoDecoderError, read_packets
from askd_ray.audio.plain import read_plain
from askd_ray.audio.waveform import AudioError, Waveform, WaveformBuilder, duration_s

__all__ = ["AudioError", "DecodedAudio", "Waveform", "decode", "duration_s", "read_audio"]

_MAX_LOST_S, _MAX_LOST_SHARE = 2.0, 0.1  # of damaged sound, whichever is more: beyond, it is another text
_MAX_PARTS = 100
_ENDS_EARLY = "the file ends or breaks off before its sound does"


@dataclass(frozen=True)
class DecodedAudio:
    """A waveform, shape ``(n_samples,)`` at 16 kHz, and what is to be said of it.

    ``missing``: sound that the file had and that is lost ("damaged: ...", "truncated: ..."). ``notes``: what was made
    of the rest ("gap: ...", "scaled: ...").
    """

    waveform: Waveform
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decode(audio: bytes, max_s: float | None = None) -> Waveform:
    """Decode an audio file of which nothing is missing to mono float32 at 16 kHz, shape ``(n_samples,)``.

    Raises :class:`AudioError` as :func:`read_audio` does, and for any damaged sound.
    """
    decoded = read_audio(audio, max_s)
    if decoded.missing:
        raise AudioError(decoded.missing[0])
    return decoded.waveform


def read_audio(audio: bytes, max_s: float | None = None, partial: bool = False) -> DecodedAudio:
    """Decode an audio file, with silence where a little of its sound is damaged; ``partial`` takes whatever is left.

    What headers declare is not believed; the times of containers are, and gaps in them become silence. Channels are
    averaged. Decoding stops as soon as there are more than ``max_s`` seconds: a small file cannot become a large array.

    Raises :class:`AudioError`: unreadable, truncated, damaged (more than 2 s and a tenth of the file), not finite,
    longer than ``max_s``, or too many samples to hold. With ``partial``, not for what is truncated or damaged.
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
    """What is missing of a file, and notes on the rest."""

    truncated: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    damaged_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    def check(self, seconds: float) -> None:
        """Refuse a file of which too much is missing."""
        if self.truncated:
            raise AudioError(self.truncated[0])
        if self.damaged_s > max(_MAX_LOST_S, _MAX_LOST_SHARE * seconds):
            raise AudioError(self.damaged[0])


def _read_parts(audio: bytes, max_s: float | None, losses: _Losses) -> list[WaveformBuilder]:
    """Read a file, or the files that it was joined of, one after the other."""
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
        found = read_packets(audio, builder)
    except NoDecoderError:
        if cut is not None:
            raise AudioError(f"truncated: {cut}") from None
        raise
    if cut is None and found.is_cut:
        cut = _ENDS_EARLY
    if cut is not None:
        losses.truncated.append(f"truncated: {cut}")
    elif found.n_packets and builder.seconds == begin_s:
        raise AudioError(f"unreadable audio: none of its {found.n_packets} packets can be decoded")
    if found.damaged.n:
        losses.damaged.append(f"damaged: {found.damaged.describe('packets lost')}")
        losses.damaged_s += found.damaged.seconds
    if found.gaps.n:
        losses.notes.append(f"gap: {found.gaps.describe('times without sound')}")
