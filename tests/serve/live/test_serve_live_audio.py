import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import spoken

from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import Vad, VadOptions
from askd_ray.serve.live.audio import LiveAudio, TurnDetector, WireFormat


def pcm16(waveform: np.ndarray) -> bytes:
    return np.round(32767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def clip(speech: Path) -> np.ndarray:
    return spoken(speech)[0][0][: samples_of(3.0)]


def at_24_khz(clip: np.ndarray) -> np.ndarray:
    return torchaudio.functional.resample(torch.from_numpy(clip), 16_000, 24_000).numpy()


def test_24_khz_is_resampled_to_16_khz(clip: np.ndarray):
    resampled = LiveAudio("audio/pcm", 24_000).push(pcm16(at_24_khz(clip)))
    assert 0 <= len(clip) - len(resampled) < 100  # a resampler holds some samples back
    error = resampled - clip[: len(resampled)]
    assert np.square(error).mean() < 1e-3 * np.square(clip).mean()


def test_16_khz_is_unchanged(clip: np.ndarray):
    assert np.allclose(LiveAudio("audio/pcm", 16_000).push(pcm16(clip)), clip, atol=1e-4)


@pytest.mark.parametrize("form", ["audio/pcmu", "audio/pcma"])
def test_g711_audio_is_decoded(form: str):
    silence = {"audio/pcmu": b"\xff", "audio/pcma": b"\xd5"}[form]
    assert np.abs(LiveAudio(form, 8_000).push(silence * 8_000)).max() < 1e-3
    loud = LiveAudio(form, 8_000).push({"audio/pcmu": b"\x80", "audio/pcma": b"\xaa"}[form] * 8_000)
    assert np.median(loud) == pytest.approx(32124 / 32768 if form == "audio/pcmu" else 32256 / 32768, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 20_000), min_size=1, max_size=20))
def test_result_is_independent_of_piece_size(clip: np.ndarray, cuts: list[int]):
    audio, live, start = pcm16(at_24_khz(clip)), LiveAudio(), 0
    pieces = []
    for cut in [*cuts, len(audio)]:
        pieces.append(live.push(audio[start : start + cut]))
        start += cut
    whole = LiveAudio().push(audio)
    found = np.concatenate(pieces)
    assert abs(len(found) - len(whole)) <= 1
    n = min(len(found), len(whole))
    assert np.allclose(found[:n], whole[:n], atol=1e-6)


def test_turn_boundaries(clip: np.ndarray, speech: Path):
    pause = np.zeros(samples_of(1.5), np.float32)
    second = spoken(speech, 2)[1][0][: samples_of(2.0)]
    recording = np.concatenate([pause, clip, pause, second, pause])
    detector, found = TurnDetector(Vad(), VadOptions(threshold=0.5, silence_s=0.8, padding_s=0.2)), []
    for piece in np.array_split(recording, 50):
        found += detector.push(piece)
    assert [event.started for event in found] == [True, False, True, False]
    first_start, first_end, second_start, _ = (event.sample for event in found)
    assert abs(first_start - samples_of(1.5)) < samples_of(0.6)
    assert samples_of(1.5) < first_end < second_start + samples_of(0.6)
    assert not detector.speaking


@given(
    form=st.sampled_from([("audio/pcm", 24_000), ("audio/pcm", 16_000), ("audio/pcmu", 8_000), ("audio/pcma", 8_000)]),
    n_wire=st.lists(st.integers(0, 3_000), max_size=4),
)
@settings(deadline=None)
def test_flush_empties_the_buffers(form: tuple[WireFormat, int], n_wire: list[int]):
    live = LiveAudio(*form)
    for n in n_wire:
        pushed = live.push(bytes(n * (2 if form[0] == "audio/pcm" else 1)))
        assert len(pushed) + len(live.flush()) == math.ceil(n * 16_000 / form[1])


def test_half_a_sample_is_kept_across_a_flush():
    live = LiveAudio("audio/pcm", 16_000)
    assert len(live.push(b"\x00\x00\x01")) == 1
    assert len(live.flush()) == 0
    assert live.push(b"\x40").tolist() == [pytest.approx(0x4001 / 32768)]


def test_shorter_silence_setting_counts_earlier_silence(clip: np.ndarray):
    detector = TurnDetector(Vad(), VadOptions(threshold=0.5, silence_s=5.0, padding_s=0.2))
    assert [e.started for e in detector.push(np.concatenate([clip, np.zeros(samples_of(1.0), np.float32)]))] == [True]
    detector.options = VadOptions(threshold=0.5, silence_s=0.2, padding_s=0.2)
    assert [e.started for e in detector.push(np.zeros(1024, np.float32))] == [False]
