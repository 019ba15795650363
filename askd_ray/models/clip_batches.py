"""Clips to batches: what every engine does before its model computes anything."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import PADDED_S, PADDED_SAMPLES, DecodingWindow
from askd_ray.errors import AskdError
from askd_ray.torch_setup import one_torch_thread


def check_durations(waveforms: Sequence[Waveform]) -> None:
    """Check that no clip is longer than 30 s.

    Raises :class:`AskdError` for the first one that is.
    """
    for number, waveform in enumerate(waveforms):
        if len(waveform) > PADDED_SAMPLES:
            raise AskdError(f"clip {number} is {duration_s(waveform):.1f} s long: at most {PADDED_S:g} s is allowed")


def clip_window_samples(waveform: Waveform, window: DecodingWindow | None, n_mels: int) -> int:
    """Return the length of a clip's window, in samples; ``window`` None means windows of 30 s."""
    return PADDED_SAMPLES if window is None else window.samples(len(waveform), n_mels)


def window_batches(windows: Sequence[int], max_samples: int) -> Iterator[tuple[int, list[int]]]:
    """Yield batches as a window length and the numbers of the clips; a batch has only clips of one window length.

    ``windows`` are the lengths of the clips' windows in samples, of which a batch has up to ``max_samples``, or one
    clip.
    """
    for window, group in groupby(sorted(range(len(windows)), key=windows.__getitem__), windows.__getitem__):
        numbers = list(group)
        size = max(1, max_samples // window)
        yield from ((window, numbers[i : i + size]) for i in range(0, len(numbers), size))


def batch_log_mel(
    waveforms: Sequence[Waveform], n_samples: int, window: DecodingWindow | None, n_mels: int
) -> torch.Tensor:
    """Return the log-mel ``(batch, n_mels, n_samples // 160)`` of clips whose windows have ``n_samples``."""
    with one_torch_thread():
        if window is None:
            return log_mel_padded(waveforms, n_mels)
        return log_mel_windows(waveforms, [n_samples] * len(waveforms), n_mels)
