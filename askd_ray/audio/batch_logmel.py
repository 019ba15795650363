"""The log-mel of a whole batch at once, on the device of the training, and the masks of SpecAugment there.

Each row equals what :mod:`askd_ray.audio.logmel` computes of the clip alone, except for rounding.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import bounded_logs, informative_frames, mel_filters, scaled, stft_window
from askd_ray.audio.units import HOP_LENGTH, N_FFT, PADDED_FRAMES
from askd_ray.torch_setup import exact_matmul

_INT16_SCALE = 1 << 15
_REACH = N_FFT // 2  # samples before and after a window that its frames reach: the window is mirrored there


def pack_waveforms(clips: Sequence[Waveform]) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return clips as one array ``(batch, n_samples)``, with zeros after shorter clips.

    It is int16 if that loses nothing: clips of 16-bit files that nothing has changed. Otherwise it is float32.
    """
    batch = np.zeros((len(clips), max(map(len, clips))), np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    scaled_up = batch * np.float32(_INT16_SCALE)
    integers = np.clip(scaled_up, -_INT16_SCALE, _INT16_SCALE - 1).astype(np.int16)
    return integers if np.array_equal(integers, scaled_up) else batch


def frame_counts(n_samples: Sequence[int], window_frames: Sequence[int]) -> NDArray[np.int64]:
    """Return three numbers of frames of each clip in its window, ``(batch, 3)``: computed, clip and end.

    The frames up to ``computed`` depend on the clip. Later ones repeat the last of these. From ``end`` on they are 0:
    from the end of the window on, and in a padded window from the end of the clip on. ``clip`` is the end of the clip.
    """
    rows: list[tuple[int, int, int]] = []
    for n, window in zip(n_samples, window_frames, strict=True):
        clip = min(n // HOP_LENGTH, window)
        rows.append((min(informative_frames(n), window), clip, clip if window == PADDED_FRAMES else window))
    return np.asarray(rows, np.int64)


def padded_frame_counts(n_samples: Sequence[int]) -> NDArray[np.int64]:
    """Return the numbers of :func:`frame_counts` for :func:`~askd_ray.audio.logmel.log_mel_padded`.

    It computes also the frames after 30 s that a clip of 30 s reaches.
    """
    return np.asarray([(informative_frames(n), n // HOP_LENGTH, n // HOP_LENGTH) for n in n_samples], np.int64)


@torch.no_grad()
def batch_log_mel(
    waveforms: torch.Tensor, counts: torch.Tensor, n_computed: int, n_mels: int, n_frames: int
) -> torch.Tensor:
    """Return the log-mel ``(batch, n_mels, n_frames)`` of :func:`pack_waveforms` on any device.

    ``counts`` (batch, 3) are those of :func:`frame_counts`, and ``n_computed`` is the largest number of computed
    frames, known on the host.
    """
    device = waveforms.device
    computed, end = counts[:, :1], counts[:, 2:]
    with torch.autocast(device.type, enabled=False), exact_matmul():
        frames = _frames(waveforms, computed * HOP_LENGTH, n_computed * HOP_LENGTH)
        stft = torch.stft(frames, N_FFT, HOP_LENGTH, window=stft_window(device), center=False, return_complex=True)
        power = stft[..., :n_computed]
        power = power.real.square().addcmul_(power.imag, power.imag)
        logs = bounded_logs(_filters(n_mels, device) @ power)
        frame = torch.arange(max(n_frames, n_computed), device=device)
        outside = (frame[:n_computed] >= computed)[:, None]
        log_mel = scaled(logs, logs.masked_fill(outside, -torch.inf).amax(dim=(1, 2), keepdim=True))
        source = torch.minimum(frame[:n_frames], computed - 1)[:, None].expand(-1, n_mels, -1)
        return log_mel.gather(2, source).masked_fill((frame[:n_frames] >= end)[:, None], 0.0)


def apply_masks(log_mel: torch.Tensor, counts: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return a log-mel in which rectangles are set to the mean of the clip.

    ``masks`` (batch, n_masks, 4): first mel bin and end, first frame and end; ``counts`` as in :func:`batch_log_mel`.
    """
    _, n_mels, n_frames = log_mel.shape
    mel, frame = (torch.arange(n, device=log_mel.device) for n in (n_mels, n_frames))
    with torch.autocast(log_mel.device.type, enabled=False):
        inside = (frame < counts[:, 1:2])[:, None]
        mean = (log_mel * inside).sum(dim=(1, 2)) / (n_mels * counts[:, 1]).clamp_min(1)
        rows = ((mel >= masks[..., :1]) & (mel < masks[..., 1:2])).to(log_mel.dtype)
        columns = ((frame >= masks[..., 2:3]) & (frame < masks[..., 3:])).to(log_mel.dtype)
        return torch.where(rows.mT @ columns > 0.0, mean[:, None, None], log_mel)


def _frames(waveforms: torch.Tensor, n_samples: torch.Tensor, longest: int) -> torch.Tensor:
    """Return clips in windows of ``n_samples`` (batch, 1), mirrored at both ends, in float32.

    torch.stft mirrors only at the ends of the longest window.
    """
    samples = waveforms.float() / _INT16_SCALE if waveforms.dtype == torch.int16 else waveforms
    silent = torch.nn.functional.pad(samples, (0, 1))  # the sample that all positions behind a clip read
    index = torch.arange(-_REACH, longest + _REACH, device=samples.device).abs()
    index = torch.minimum(index, 2 * (n_samples - 1) - index).clamp(0, samples.shape[1])
    return silent.gather(1, index)


@lru_cache(maxsize=8)
def _filters(n_mels: int, device: torch.device) -> torch.Tensor:
    return mel_filters(n_mels).to(device)
