"""Whisper's log-mel spectrogram, through torchaudio; equal to transformers' WhisperFeatureExtractor."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torchaudio.functional
from torch.nn import functional

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import HOP_LENGTH, N_FFT, SAMPLE_RATE_HZ

_FLOOR = 1e-10  # power under which the logarithm is cut
_RANGE = 8.0  # bels below the loudest bin that are kept


@lru_cache(maxsize=4)
def _filters(n_mels: int) -> torch.Tensor:
    filters = torchaudio.functional.melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE_HZ / 2, n_mels, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


def log_mel(waveforms: torch.Tensor, n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of waveforms at 16 kHz: ``(batch, n_samples)`` -> ``(batch, n_mels, n_samples // 160)``.

    Power in decibels / 10, cut at 8 below the loudest bin of each waveform, then ``(x + 4) / 4``, as
    openai/whisper ``audio.py`` does it.
    """
    window = torch.hann_window(N_FFT, device=waveforms.device)
    stft = torch.stft(waveforms, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :-1]
    power = stft.real.square().addcmul_(stft.imag, stft.imag)  # abs() would take a root that squaring undoes
    logs = (_filters(n_mels).to(power.device) @ power).clamp(min=_FLOOR).log10()
    loudest = logs.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(logs, loudest - _RANGE) + 4.0) / 4.0


def log_mel_windows(waveforms: Sequence[Waveform], windows: Sequence[int], n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of clips in windows of their own lengths, as one batch of the longest window.

    ``windows`` are lengths in samples; a clip longer than its window is cut. What lies behind a clip is silence, so
    the batch ``(batch, n_mels, max(windows) // 160)`` is what each clip alone would give, with more silence. That
    silence is filled in instead of computed.
    """
    n_samples = max(windows)
    batch = torch.empty(len(waveforms), n_mels, n_samples // HOP_LENGTH)
    for row, (waveform, window) in enumerate(zip(waveforms, windows, strict=True)):
        clip = torch.from_numpy(waveform[:window])
        # So many frames that the last one lies wholly behind the clip, if the batch has that many.
        n_frames = min(-(-(len(clip) + N_FFT // 2) // HOP_LENGTH) + 1, n_samples // HOP_LENGTH)
        padded = functional.pad(clip, (0, n_frames * HOP_LENGTH - len(clip)))
        batch[row, :, :n_frames] = log_mel(padded[None], n_mels)[0]
        batch[row, :, n_frames:] = batch[row, :, n_frames - 1 : n_frames]
    return batch
