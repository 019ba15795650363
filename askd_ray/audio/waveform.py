"""Build mono waveforms at 16 kHz piece by piece; limits are checked before each piece is added."""

import math

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.resample import Resampler
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of

Waveform = NDArray[np.float32]
"""Mono samples at 16 kHz in [-1, 1], shape ``(n_samples,)``."""

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_SAMPLES = 1 << 28  # at 16 kHz: 1 GB, 4.6 hours
_INTEGER_SCALES = (1 << 15, 1 << 23, 1 << 31)  # full scale of 16, 24 and 32 bits
_FADE_S = 0.01
MAX_PEAK = 32.0  # 30 dB above full scale: louder samples are integers that were written as floats


class AudioError(ValueError):
    """Audio that cannot be used. The message is "REASON: DETAIL", as the quarantine file has them."""


def duration_s(waveform: Waveform) -> float:
    """Return the duration of a waveform at 16 kHz in seconds."""
    return waveform.shape[0] / SAMPLE_RATE_HZ


def fade_ends(clip: Waveform) -> Waveform:
    """Return a clip that begins and ends within 10 ms, without the click of a cut."""
    n = min(samples_of(_FADE_S), len(clip) // 2)
    faded, ramp = clip.copy(), np.linspace(0.0, 1.0, n, dtype=np.float32)
    faded[:n] *= ramp
    faded[len(clip) - n :] *= ramp[::-1]
    return faded


class WaveformBuilder:
    """Joins pieces of sound, of any rates and channels, and silence; more than ``max_s`` is an error.

    ``seconds`` is the end of the sound so far, counted from ``begin_s``, the end of an earlier part. ``is_float``: the
    file stores float samples.
    """

    def __init__(self, max_s: float | None, begin_s: float = 0.0):
        self.seconds, self.is_float = begin_s, False
        self._max_s = math.inf if max_s is None else max_s
        self._pieces: list[Waveform] = []
        self._resampler = Resampler(SAMPLE_RATE_HZ)
        self._rate_hz, self._n_samples, self._before_s = SAMPLE_RATE_HZ, 0, begin_s

    def add(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Add a piece ``(n_samples, n_channels)``; the channels are averaged.

        Raises :class:`AudioError`: longer than ``max_s``, too many samples for memory, or a rate out of range.
        """
        self._set_rate(rate_hz)
        self._count(len(samples))
        mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
        self._pieces.append(self._resampler.push(mono))

    def add_silence(self, seconds: float) -> None:
        """Add silence at the rate of the last piece; raises as :meth:`add` does, before it allocates memory."""
        n_samples = round(seconds * self._rate_hz)
        self._count(n_samples)
        if self._rate_hz == SAMPLE_RATE_HZ:
            self._pieces.append(np.zeros(n_samples, np.float32))
            return
        for start in range(0, n_samples, MAX_RATE_HZ):  # in blocks: silence at the original rate takes memory too
            piece = np.zeros(min(MAX_RATE_HZ, n_samples - start), np.float32)
            self._pieces.append(self._resampler.push(piece))

    def finish(self) -> tuple[Waveform, int | None]:
        """Return the waveform, and the divisor if its samples were integers written as floats, else None.

        Raises :class:`AudioError`: some samples are not finite, or exceed the full scale of 32 bits.
        """
        self._flush()
        only = len(self._pieces) == 1
        waveform = self._pieces[0] if only else np.concatenate([np.zeros(0, np.float32), *self._pieces])
        peak = max(-float(waveform.min()), float(waveform.max())) if len(waveform) else 0.0
        if not math.isfinite(peak):
            raise AudioError("not finite: the samples hold NaN or infinity")
        if peak <= MAX_PEAK or not self.is_float:
            return waveform, None
        scale = next((scale for scale in _INTEGER_SCALES if peak <= scale), None)
        if scale is None:
            raise AudioError(f"unreadable audio: samples of up to {peak:.3g}, and 1 is full scale")
        return waveform / np.float32(scale), scale

    def _set_rate(self, rate_hz: int) -> None:
        """Continue at another rate: a file may be several files joined."""
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioError(f"unreadable audio: {rate_hz} Hz, and {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are allowed")
        if rate_hz != self._rate_hz:
            self._flush()
            self._resampler = Resampler(rate_hz)
            self._rate_hz, self._n_samples, self._before_s = rate_hz, 0, self.seconds

    def _flush(self) -> None:
        if self._rate_hz != SAMPLE_RATE_HZ and self._n_samples:
            self._pieces.append(self._resampler.push(np.zeros(0, np.float32), last=True))

    def _count(self, n_samples: int) -> None:
        self._n_samples += n_samples
        self.seconds = self._before_s + self._n_samples / self._rate_hz
        if self.seconds > self._max_s:
            raise AudioError(f"longer than {self._max_s:g} s")
        if samples_of(self.seconds) > MAX_SAMPLES:
            raise AudioError(f"too many samples: at most {MAX_SAMPLES} at 16 kHz are allowed")
