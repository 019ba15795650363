from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from askd_ray.audio.decode import duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.errors import AskdError
from askd_ray.evaluation.non_speech import NonSpeech, non_speech_clips


@pytest.fixture(scope="module")
def clips() -> list[NonSpeech]:
    return non_speech_clips()


def level_db(clip: NonSpeech) -> float:
    return 10.0 * np.log10(np.mean(clip.waveform.astype(np.float64) ** 2) + 1e-20)


def test_clips_of_every_kind_and_length(clips: list[NonSpeech]):
    assert Counter(clip.kind for clip in clips) == {"silence": 8, "noise": 24, "music": 8, "tone": 16}
    assert len({clip.id for clip in clips}) == len({clip.waveform.tobytes() for clip in clips}) == len(clips)
    for kind in ("silence", "noise", "tone"):
        assert {duration_s(clip.waveform) for clip in clips if clip.kind == kind} == {2.0, 5.0, 10.0, 20.0}
    assert all(8.0 <= duration_s(clip.waveform) <= 12.0 for clip in clips if clip.kind == "music")
    for clip in clips:
        assert clip.waveform.dtype == np.float32
        assert np.isfinite(clip.waveform).all() and np.abs(clip.waveform).max() <= 1.0


def test_they_are_always_the_same(clips: list[NonSpeech]):
    for clip, again in zip(clips, non_speech_clips(), strict=True):
        assert clip.id == again.id
        np.testing.assert_array_equal(clip.waveform, again.waveform)


def test_levels(clips: list[NonSpeech]):
    levels = {clip.id: level_db(clip) for clip in clips}
    assert all((level == -200.0) == ("digital" in name) for name, level in levels.items())
    assert {round(level) for name, level in levels.items() if name.startswith("silence-floor")} == {-75}
    assert {round(level) for name, level in levels.items() if name.startswith("noise")} == {-15, -30, -45}
    assert all(-24.0 < level < -19.9 for name, level in levels.items() if name.startswith(("music", "tone")))


def test_tones_are_on_and_off(clips: list[NonSpeech]):
    by_id = {clip.id: clip.waveform for clip in clips}
    ringing = np.abs(by_id["tone-ringing-20s"]).reshape(20, SAMPLE_RATE_HZ).max(1) > 0.0
    assert ringing.tolist() == [second % 6 < 2 for second in range(20)]
    power = np.abs(np.fft.rfft(by_id["tone-dial-10s"])) ** 2
    assert sorted(power.argsort()[-2:] / 10.0) == [350.0, 440.0]


def test_music_has_tones_that_begin_and_die_away(clips: list[NonSpeech]):
    for clip in clips:
        if clip.kind == "music":
            frames = clip.waveform[: len(clip.waveform) // 800 * 800].reshape(-1, 800).astype(np.float64)
            loudness = 10.0 * np.log10((frames**2).mean(1) + 1e-12)
            onsets = int((np.diff(loudness) > 1.5).sum())
            assert onsets >= 6, clip.id
            power = np.abs(np.fft.rfft(clip.waveform)) ** 2
            flatness = np.exp(np.log(power + 1e-12).mean()) / power.mean()
            assert flatness < 0.01, clip.id  # noise has 0.56


def test_noises_from_files(tmp_path: Path):
    rng = np.random.default_rng(0)
    for i in range(100):
        soundfile.write(tmp_path / f"n{i:03d}.flac", rng.normal(0, 0.1, 20_000), SAMPLE_RATE_HZ)
    noises = [clip for clip in non_speech_clips(f"{tmp_path}/*.flac") if clip.kind == "noise"]
    assert len(noises) == 34  # every third
    assert noises[1].id == "noise-01-n003-5s" and {duration_s(clip.waveform) for clip in noises} == {2, 5, 10, 20}
    assert all(level_db(clip) == pytest.approx(-20.0, abs=1.0) for clip in noises)  # as loud as they are
    with pytest.raises(AskdError, match="no file matches"):
        non_speech_clips(f"{tmp_path}/*.ogg")
