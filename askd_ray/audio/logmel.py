"""Whisper's log-mel spectrogram with torchaudio; equal to transformers' WhisperFeatureExtractor."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torchaudio.functional
from torch.nn import functional

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import HOP_LENGTH, N_FFT, PADDED_SAMPLES, SAMPLE_RATE_HZ

_FLOOR = 1e-10  # smallest power before the logarithm
_RANGE = 8.0  # bels below the loudest bin; quieter bins are raised to this level


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> torch.Tensor:
    """Return the mel filters ``(n_mels, 201)``."""
    filters = torchaudio.functional.melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE_HZ / 2, n_mels, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


@lru_cache(maxsize=8)
def stft_window(device: torch.device) -> torch.Tensor:
    """Return the window of the short-time Fourier transform ``(400,)``."""
    return torch.hann_window(N_FFT, device=device)


def log_mel(waveforms: torch.Tensor, n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of waveforms at 16 kHz: ``(batch, n_samples)`` -> ``(batch, n_mels, n_samples // 160)``.

    Power in decibels / 10, cut at 8 below the loudest bin of each waveform, then ``(x + 4) / 4``, as
    openai/whisper ``audio.py`` does it.
    """
    window = stft_window(waveforms.device)
    stft = torch.stft(waveforms, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :-1]
    power = stft.real.square().addcmul_(stft.imag, stft.imag)  # abs() would take a root that squaring undoes
    logs = bounded_logs(mel_filters(n_mels).to(power.device) @ power)
    return scaled(logs, logs.amax(dim=(1, 2), keepdim=True))


def bounded_logs(power: torch.Tensor) -> torch.Tensor:
    """Return powers in bels; those near 0 are raised to -10."""
    return power.clamp(min=_FLOOR).log10()


def scaled(logs: torch.Tensor, loudest: torch.Tensor) -> torch.Tensor:
    """Return the log-mel of powers in bels: cut at 8 below the loudest bin, then scaled."""
    return (torch.maximum(logs, loudest - _RANGE) + 4.0) / 4.0


def log_mel_windows(waveforms: Sequence[Waveform], windows: Sequence[int], n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of clips in windows of their own lengths, as one batch of the longest window.

    ``windows`` are lengths in samples; a clip longer than its window is cut. Shape ``(batch, n_mels,
    max(windows) // 160)``. Each row is the log-mel of its clip alone in its window, and then 0. The silent frames of a
    window are filled in, not computed.
    """
    frames = [window // HOP_LENGTH for window in windows]
    clips = zip(waveforms, windows, frames, strict=True)
    return pad_batch([clip_log_mel(waveform[:window], n, n_mels) for waveform, window, n in clips], frames)


def log_mel_padded(waveforms: Sequence[Waveform], n_mels: int = 80) -> torch.Tensor:
    """Return the log-mel of clips of at most 30 s as Whisper is usually run: ``(batch, n_mels, 3000)``, zero-padded.

    openai/whisper's ``transcribe`` and faster-whisper pad the log-mel with zeros, which differ from silence.
    transformers' feature extractor pads the waveform, as :func:`log_mel_windows` does. Short clips are transcribed
    better with zeros in the log-mel (docs/LOG.md), so every comparison with a 30 s Whisper uses this function.
    """
    batch = torch.zeros(len(waveforms), n_mels, PADDED_SAMPLES // HOP_LENGTH)
    for row, waveform in enumerate(waveforms):
        n_frames = len(waveform) // HOP_LENGTH
        batch[row, :, :n_frames] = clip_log_mel(waveform, informative_frames(len(waveform)), n_mels)[:, :n_frames]
    return batch


def informative_frames(n_samples: int) -> int:
    """Return the number of frames up to and with the first one wholly after a clip; later frames repeat that one."""
    return -(-(n_samples + N_FFT // 2) // HOP_LENGTH) + 1


def clip_log_mel(clip: Waveform, n_frames: int, n_mels: int) -> torch.Tensor:
    """Return the log-mel of a clip in a window of ``n_frames``, cut after :func:`informative_frames`."""
    n_frames = min(informative_frames(len(clip)), n_frames)
    padded = functional.pad(torch.from_numpy(clip), (0, n_frames * HOP_LENGTH - len(clip)))
    return log_mel(padded[None], n_mels)[0]


def pad_batch(clips: Sequence[torch.Tensor], window_frames: Sequence[int]) -> torch.Tensor:
    """Join log-mels ``(n_mels, n)`` into one batch; each one's last frame is repeated to the end of its window.

    After shorter windows the batch has zeros, as the convolutions of an encoder pad.
    """
    batch = torch.zeros(len(clips), clips[0].shape[0], max(window_frames))
    for row, clip, n_frames in zip(batch, clips, window_frames, strict=True):
        row[:, : clip.shape[1]] = clip
        row[:, clip.shape[1] : n_frames] = clip[:, -1:]
    return batch
