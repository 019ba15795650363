"""Whisper's log-mel spectrogram, through torchaudio; equal to transformers' WhisperFeatureExtractor."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torchaudio.functional
from torch.nn import functional

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import HOP_LENGTH, N_FFT, PADDED_SAMPLES, SAMPLE_RATE_HZ

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
    n_frames = max(windows) // HOP_LENGTH
    clips = zip(waveforms, windows, strict=True)
    return pad_batch([clip_log_mel(waveform[:window], n_frames, n_mels) for waveform, window in clips], n_frames)


def log_mel_padded(waveforms: Sequence[Waveform], n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of clips of at most 30 s as most run Whisper: ``(batch, n_mels, 3000)``, 0 behind a clip.

    openai/whisper's ``transcribe`` and faster-whisper fill up the log-mel, with zeros that no silence gives.
    transformers' feature extractor fills up the waveform, as :func:`log_mel_windows` does. Short clips are heard
    better in the first way (docs/LOG.md): whatever is compared with a Whisper of 30 s windows is compared with that.
    """
    batch = torch.zeros(len(waveforms), n_mels, PADDED_SAMPLES // HOP_LENGTH)
    for row, waveform in enumerate(waveforms):
        n_frames = len(waveform) // HOP_LENGTH
        batch[row, :, :n_frames] = clip_log_mel(waveform, informative_frames(len(waveform)), n_mels)[:, :n_frames]
    return batch


def informative_frames(n_samples: int) -> int:
    """Return so many frames that the last one lies wholly behind a clip: what comes after is the same silence."""
    return -(-(n_samples + N_FFT // 2) // HOP_LENGTH) + 1


def clip_log_mel(clip: Waveform, n_frames: int, n_mels: int) -> torch.Tensor:
    """Return the log-mel of a clip in a window of ``n_frames``, without the frames after :func:`informative_frames`."""
    n_frames = min(informative_frames(len(clip)), n_frames)
    padded = functional.pad(torch.from_numpy(clip), (0, n_frames * HOP_LENGTH - len(clip)))
    return log_mel(padded[None], n_mels)[0]


def pad_batch(clips: Sequence[torch.Tensor], n_frames: int) -> torch.Tensor:
    """Return log-mels ``(n_mels, at most n_frames)`` as one batch, their last frames repeated to its end."""
    batch = torch.empty(len(clips), clips[0].shape[0], n_frames)
    for row, clip in enumerate(clips):
        batch[row, :, : clip.shape[1]] = clip
        batch[row, :, clip.shape[1] :] = clip[:, -1:]
    return batch
