import json

import numpy as np
import pytest
import torch
from faster_whisper.audio import pad_or_trim
from faster_whisper.feature_extractor import FeatureExtractor
from transformers import WhisperFeatureExtractor

from askd_ray.audio.decode import decode
from askd_ray.audio.logmel import log_mel, log_mel_padded, log_mel_windows
from askd_ray.audio.units import HOP_LENGTH, PADDED_FRAMES, PADDED_SAMPLES, samples_of, window_samples


@pytest.fixture(scope="module")
def clips(speech):
    """Every 40th real prompt of at most 30 s, and the shortest."""
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()]
    files = [speech / row["audio"] for row in rows]
    chosen = [*files[::40], min(files, key=lambda file: file.stat().st_size)]
    clips = [decode(file.read_bytes()) for file in chosen]
    clips = [clip for clip in clips if len(clip) <= PADDED_SAMPLES]
    assert len(clips) >= 10
    assert min(map(len, clips)) < samples_of(0.7)
    return clips


def padded(clips, n_mels=80):
    return log_mel_windows(clips, [PADDED_SAMPLES] * len(clips), n_mels)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_padded_windows_equal_transformers(clips, n_mels):
    extract = WhisperFeatureExtractor(feature_size=n_mels)
    expected = extract(clips, sampling_rate=16_000, return_tensors="np")["input_features"]
    ours = padded(clips, n_mels).numpy()
    assert ours.shape == expected.shape == (len(clips), n_mels, PADDED_FRAMES)
    assert np.abs(ours - expected).max() <= 1e-4


@pytest.mark.parametrize("n_mels", [80, 128])
def test_trimmed_windows_equal_faster_whisper(clips, n_mels):
    extract = FeatureExtractor(feature_size=n_mels)
    ours = log_mel_padded(clips, n_mels).numpy()
    for row, clip in zip(ours, clips, strict=True):
        # its transcribe() leaves out the last frame, which lies behind the clip
        assert np.abs(row - pad_or_trim(extract(clip)[:, :-1])).max() <= 1e-4


def test_30_s_clip_fills_the_window():
    clip = np.random.default_rng(0).standard_normal(PADDED_SAMPLES).astype(np.float32)
    ours = log_mel_padded([clip])[..., :-1]  # the last frame reaches behind the clip: silence here, a mirror there
    assert (ours - padded([clip])[..., :-1]).abs().max() <= 1e-5


def test_trimmed_window_is_the_start_of_the_padded_one(clips):
    # 0.1 s of silence is more than the 200 samples that the STFT mirrors at the end of a window.
    for clip in clips:
        if len(clip) > PADDED_SAMPLES - samples_of(0.1):
            continue
        window = window_samples(len(clip), 0.1)
        trimmed = log_mel_windows([clip], [window])[0]
        assert trimmed.shape == (80, window // HOP_LENGTH)
        assert (trimmed - padded([clip])[0, :, : trimmed.shape[1]]).abs().max() <= 1e-5


def test_features_are_independent_of_the_batch(clips):
    windows = [window_samples(len(clip), 0.3) for clip in clips]
    batch = log_mel_windows(clips, windows)
    assert batch.shape == (len(clips), 80, max(windows) // HOP_LENGTH)
    for row, (clip, window) in enumerate(zip(clips, windows, strict=True)):
        alone = log_mel_windows([clip], [window])[0]
        assert torch.equal(batch[row, :, : alone.shape[1]], alone)
        assert not batch[row, :, alone.shape[1] :].any()


def test_filled_silence_equals_computed_silence(clips):
    noisy = [clip + 0.05 * np.random.default_rng(0).standard_normal(len(clip), np.float32) for clip in clips[:3]]
    for all_clips in (clips[:6], noisy):
        for clip in all_clips:
            for silence_s in (0.05, 1.0):
                window = window_samples(len(clip) - 500, silence_s)  # some clips end with their window
                waveform = torch.zeros(1, window)
                waveform[0, : min(len(clip), window)] = torch.from_numpy(clip[:window])
                torch.testing.assert_close(log_mel_windows([clip], [window]), log_mel(waveform), rtol=0, atol=1e-6)


def test_long_clip_is_cut_to_the_window(clips):
    clip = max(clips, key=len)
    window = samples_of(1.0)
    torch.testing.assert_close(log_mel_windows([clip], [window]), log_mel(torch.from_numpy(clip[:window])[None]))


def test_silence_has_the_floor_value():
    # log10(1e-10) = -10, and (-10 + 4) / 4 = -1.5
    assert torch.equal(log_mel(torch.zeros(2, 3200)), torch.full((2, 80, 20), -1.5))


@pytest.mark.parametrize(
    ("n_samples", "silence_s", "min_s", "expected"),
    [
        (16_000, 0.3, 0.0, 20_800),  # 65 positions exactly
        (16_001, 0.3, 0.0, 21_120),  # one sample more needs one position more
        (1, 0.01, 0.0, 320),
        (480_000, 0.3, 0.0, 480_000),  # never beyond 30 s
        (479_999, 1.0, 0.0, 480_000),
        (1, 0.3, 1.0, 16_000),
        (16_000, 0.3, 1.0, 20_800),
        (16_000, 0.3, 30.0, 480_000),
    ],
)
def test_window_samples(n_samples, silence_s, min_s, expected):
    assert window_samples(n_samples, silence_s, min_s) == expected
