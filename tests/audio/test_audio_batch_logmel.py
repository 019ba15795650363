"""The log-mel of a batch equals that of each clip alone, in every kind of window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.augment import draw_masks, spec_augment
from askd_ray.audio.batch_logmel import apply_masks, batch_log_mel, frame_counts, pack_waveforms, padded_frame_counts
from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import HOP_LENGTH, PADDED_FRAMES, PADDED_SAMPLES
from askd_ray.config.augment import SpecAugment


def noise(n_samples: int, seed: int = 0) -> Waveform:
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.001, 0.3) * rng.standard_normal(n_samples)).astype(np.float32)


def in_windows(clips: list[Waveform], frames: list[int], n_mels: int = 80) -> torch.Tensor:
    counts = frame_counts([len(clip) for clip in clips], frames)
    waveforms = torch.from_numpy(pack_waveforms(clips))
    return batch_log_mel(waveforms, torch.from_numpy(counts), int(counts[:, 0].max()), n_mels, max(frames))


clip_and_window = st.tuples(st.integers(1, 60_000), st.integers(2, 200).map(lambda positions: 2 * positions))


@settings(max_examples=30, deadline=None)
@given(st.lists(clip_and_window, min_size=1, max_size=5), st.sampled_from([80, 128]))
def test_rows_equal_clips_alone_in_their_windows(rows: list[tuple[int, int]], n_mels: int):
    """Also clips that are longer than their windows, and those that end just before the end of one."""
    clips, frames = [noise(n, seed) for seed, (n, _) in enumerate(rows)], [window for _, window in rows]
    expected = log_mel_windows(clips, [n * HOP_LENGTH for n in frames], n_mels)
    torch.testing.assert_close(in_windows(clips, frames, n_mels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_samples", [[16_000, 31_999, 700], [PADDED_SAMPLES, 40_000], [PADDED_SAMPLES - 150]])
def test_padded_windows_equal_those_of_the_teacher(n_samples: list[int]):
    clips = [noise(n, seed) for seed, n in enumerate(n_samples)]
    counts = padded_frame_counts(n_samples)
    waveforms = torch.from_numpy(pack_waveforms(clips))
    found = batch_log_mel(waveforms, torch.from_numpy(counts), int(counts[:, 0].max()), 80, PADDED_FRAMES)
    torch.testing.assert_close(found, log_mel_padded(clips), atol=1e-5, rtol=0)
    if max(n_samples) < PADDED_SAMPLES - 2 * HOP_LENGTH:
        torch.testing.assert_close(in_windows(clips, [PADDED_FRAMES] * len(clips)), found, atol=1e-5, rtol=0)


def test_log_mel_is_float32_in_a_training_in_bfloat16():
    clips = [noise(20_000), noise(9_000, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        found = in_windows(clips, [140, 60])
    assert torch.equal(found, in_windows(clips, [140, 60]))


def test_clips_of_16_bits_take_two_bytes_a_sample():
    whole = [np.round(noise(n, n) * 32768).astype(np.float32) / 32768 for n in (5_000, 7_000)]
    whole[0][:2] = -1.0, 32767 / 32768
    packed = pack_waveforms(whole)
    assert packed.dtype == np.int16 and packed.shape == (2, 7_000)
    for clip, row in zip(whole, packed, strict=True):
        np.testing.assert_array_equal(row[: len(clip)].astype(np.float32) / 32768, clip)
        assert not row[len(clip) :].any()
    torch.testing.assert_close(in_windows(whole, [60, 60]), log_mel_windows(whole, [9_600] * 2), atol=1e-5, rtol=0)
    for change in (whole[1] * 0.9, whole[1] + 1.0):
        assert pack_waveforms([whole[0], change.astype(np.float32)]).dtype == np.float32


def test_masks_equal_those_of_a_clip_alone():
    masks, n_frames = SpecAugment(time_share=0.2), [90, 40, 0]
    log_mel = torch.randn(3, 80, 100, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor([draw_masks(80, n, masks, seed) for seed, n in enumerate(n_frames)])
    counts = torch.tensor([[100, n, 100] for n in n_frames])
    found = apply_masks(log_mel, counts, drawn)
    for seed, n in enumerate(n_frames):
        expected = log_mel[seed].clone()
        expected[:, :n] = spec_augment(log_mel[seed, :, :n], masks, seed)
        torch.testing.assert_close(found[seed], expected, atol=1e-6, rtol=0)
        assert n == 0 or not torch.equal(found[seed], log_mel[seed])
