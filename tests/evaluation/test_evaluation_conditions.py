import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from small_run import utterances

from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import sped_up_samples
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ
from askd_ray.config import evaluate as config
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.conditions import N_BABBLE, Condition, Sounds, apply, voices_of

ALL = ["white@10", "babble@0", "noise@-5", "telephone", "room", "speed@0.9", "speed@1.25", "clip@12"]


@pytest.fixture(scope="module")
def spoken(speech: Path) -> list[Utterance]:
    """Twelve real prompts, labelled with four speakers."""
    return [replace(u, speaker=f"s{i % 4}") for i, u in enumerate(utterances(speech, 12))]


@pytest.fixture(scope="module")
def sounds(spoken: list[Utterance]) -> Sounds:
    return Sounds(voices=voices_of("ivr", spoken, seed=0))


@pytest.fixture(scope="module")
def clip(spoken: list[Utterance]) -> Waveform:
    return waveform_of(spoken[0])


def change_clip(text: str, waveform: Waveform, sounds: Sounds, utterance_id: str = "u", seed: int = 0) -> Waveform:
    return apply(Condition.parse(text), waveform, utterance_id=utterance_id, speaker="s0", seed=seed, sounds=sounds)


def level_db(waveform: Waveform) -> float:
    return 10.0 * np.log10(np.mean(waveform.astype(np.float64) ** 2))


def test_conditions_are_read_as_the_recipe_writes_them():
    assert Condition.parse("babble@-2.5") == Condition("babble", -2.5)
    assert Condition.parse("telephone") == Condition("telephone")
    recipe = TypeAdapter(config.ConditionText)
    assert [recipe.validate_python(text) for text in ALL] == ALL
    for text in ("speed@0.4", "speed@1.234", "speed@0.0", "white", "room@3", "clip@-3"):
        with pytest.raises(ValidationError):
            recipe.validate_python(text)
    with pytest.raises(ValueError, match="no condition is called hum"):
        apply(Condition("hum"), np.zeros(9, np.float32), utterance_id="u", speaker="", seed=0, sounds=Sounds())


@pytest.mark.parametrize("text", ALL)
def test_a_condition_is_a_pure_function(clip: Waveform, sounds: Sounds, text: str):
    original, first = clip.copy(), change_clip(text, clip, sounds)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    np.testing.assert_array_equal(change_clip(text, clip.copy(), sounds), first)
    np.testing.assert_array_equal(clip, original)
    assert not np.array_equal(first, clip)
    assert first.dtype == np.float32 and np.isfinite(first).all() and np.abs(first).max() <= 1.0
    if text in ("white@10", "babble@0", "noise@-5", "room"):  # of the others nothing is drawn
        assert not np.array_equal(change_clip(text, clip, sounds, utterance_id="v"), first)
        assert not np.array_equal(change_clip(text, clip, sounds, seed=1), first)


@settings(max_examples=60, deadline=None)
@given(
    text=st.sampled_from(ALL),
    n_samples=st.integers(400, 3 * SAMPLE_RATE_HZ),
    level=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_length_is_kept_and_nothing_breaks(sounds: Sounds, text: str, n_samples: int, level: float, seed: int):
    waveform = np.random.default_rng(seed).uniform(-level, level, n_samples).astype(np.float32)
    changed = change_clip(text, waveform, sounds, str(seed), seed)
    condition = Condition.parse(text)
    assert len(changed) == (sped_up_samples(n_samples, condition.value) if condition.kind == "speed" else n_samples)
    assert np.isfinite(changed).all() and np.abs(changed).max() <= 1.0


@pytest.mark.parametrize("kind", ["white", "babble", "noise"])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_the_snr_is_what_was_asked_for(spoken: list[Utterance], sounds: Sounds, kind: str, snr_db: float):
    for utterance in spoken[:6]:
        quiet = waveform_of(utterance) * 0.03  # low enough that nothing has to be scaled down
        noisy = change_clip(f"{kind}@{snr_db}", quiet, sounds, utterance.id)
        assert np.abs(noisy).max() < 1.0
        assert level_db(quiet) - level_db(noisy - quiet) == pytest.approx(snr_db, abs=0.1)


def test_a_noise_is_the_same_at_every_level(clip: Waveform, sounds: Sounds):
    quiet = clip * 0.03
    for kind in ("white", "babble", "noise"):
        soft, loud = (change_clip(f"{kind}@{snr_db}", quiet, sounds) - quiet for snr_db in (20, 0))
        assert np.corrcoef(soft, loud)[0, 1] > 0.9999


def test_babble_is_made_of_others(spoken: list[Utterance], clip: Waveform):
    voices = voices_of("ivr", spoken, seed=0)
    assert len(voices) == 12 and {v.speaker for v in voices[:4]} == {"s0", "s1", "s2", "s3"}
    assert voices_of("ivr", spoken[::-1], seed=0)[0].speaker == voices[0].speaker
    assert all(float(v.waveform.square().mean()) == pytest.approx(1.0, rel=1e-4) for v in voices)
    # Each voice is a tone of its own, so that a spectrum tells whom one hears.
    t = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tones = {f"s{i}": 500 * (i + 1) for i in range(8)}
    sung = tuple(replace(voices[0], speaker=s, waveform=torch.sin(2 * torch.pi * hz * t)) for s, hz in tones.items())
    for i in range(20):
        quiet = np.full(SAMPLE_RATE_HZ, 1e-3, np.float32)  # all at 0 Hz
        power = np.abs(np.fft.rfft(change_clip("babble@-20", quiet, Sounds(voices=sung), f"u{i}"))) ** 2
        audible = {hz for hz in tones.values() if power[hz] > 0.01 * power[1:].max()}
        assert len(audible) == N_BABBLE and tones["s0"] not in audible


def test_babble_needs_a_second_speaker(spoken: list[Utterance], clip: Waveform):
    alone = [replace(u, speaker="s0") for u in spoken]
    with pytest.raises(AskdError, match="babble behind set ivr: babble needs other speakers, and"):
        voices_of("ivr", alone, seed=0)
    with pytest.raises(AskdError, match="babble behind set ivr: an utterance has no speaker label"):
        voices_of("ivr", [*spoken, replace(spoken[0], speaker="")], seed=0)
    with pytest.raises(AskdError, match="babble behind s0: there is no voice of another speaker"):
        change_clip("babble@5", clip, Sounds())
    two = voices_of("ivr", [replace(u, speaker=f"s{i % 2}") for i, u in enumerate(spoken)], seed=0)
    assert not np.array_equal(change_clip("babble@5", clip, Sounds(voices=two)), clip)


def test_noises_and_rooms_from_files(clip: Waveform, tmp_path: Path):
    hum = 0.1 * np.sin(2 * np.pi * 50 * np.arange(8_000) / SAMPLE_RATE_HZ)
    soundfile.write(tmp_path / "hum.flac", hum, SAMPLE_RATE_HZ)
    echo = np.zeros(4_000)
    echo[1_000], echo[3_000] = 0.8, 0.4
    soundfile.write(tmp_path / "echo.wav", echo, SAMPLE_RATE_HZ)
    files = Sounds(noise_files=f"{tmp_path}/hum.*", room_files=f"{tmp_path}/echo.*")
    noise = change_clip("noise@5", clip * 0.05, files) - clip * 0.05
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE_HZ)
    assert power[abs(frequencies - 50) < 5].sum() > 0.95 * power.sum()
    impulse = np.zeros(8_000, np.float32)
    impulse[100] = 0.5
    wet = change_clip("room", impulse, files)
    assert np.abs(wet).argsort()[-2:].tolist() == [2_100, 100]


def test_peaks_are_cut_so_far_below_the_highest(clip: Waveform, sounds: Sounds):
    cut = change_clip("clip@12", clip, sounds)
    limit = np.abs(clip).max() * 10 ** (-12 / 20)
    assert np.abs(cut).max() == pytest.approx(limit, rel=1e-5)
    np.testing.assert_array_equal(cut[np.abs(clip) < limit], clip[np.abs(clip) < limit])
    np.testing.assert_array_equal(change_clip("clip@0", clip, sounds), clip)


def test_slower_clips_may_exceed_thirty_seconds(sounds: Sounds):
    slow = change_clip("speed@0.5", np.full(PADDED_SAMPLES, 0.1, np.float32), sounds)
    assert len(slow) == 2 * PADDED_SAMPLES
