"""Resample from any rate to 16 kHz, whole or in pieces; the cost does not depend on the ratio of the two rates."""

import numpy as np
import soxr
from numpy.typing import NDArray

from askd_ray.audio.units import SAMPLE_RATE_HZ


class Resampler:
    """Resamples mono pieces from ``rate_hz`` to 16 kHz; all results are ``ceil(n_samples * 16000 / rate_hz)`` long."""

    def __init__(self, rate_hz: int):
        self._rate_hz, self._n_in, self._n_out = rate_hz, 0, 0
        no_change = rate_hz == SAMPLE_RATE_HZ
        self._stream = None if no_change else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")

    def push(self, piece: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """Add a piece and return the samples that are ready, shape ``(n_samples,)``; with ``last`` all the rest."""
        if self._stream is None:
            return piece
        self._n_in += len(piece)
        out = np.asarray(self._stream.resample_chunk(piece, last=last), np.float32)
        if last:  # soxr rounds the total length, this class rounds it up
            n_rest = -(-self._n_in * SAMPLE_RATE_HZ // self._rate_hz) - self._n_out
            out = np.pad(out[:n_rest], (0, max(n_rest - len(out), 0)))
        self._n_out += len(out)
        return out


def resample(waveform: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Resample a mono waveform, shape ``(n_samples,)``, from ``rate_hz`` to 16 kHz (windowed sinc, by soxr)."""
    return Resampler(rate_hz).push(waveform, last=True)
