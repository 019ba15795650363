import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import mask_along_axis
from torchaudio.transforms import Speed

from askd_ray.audio.augment import augment, spec_augment, speed_factor
from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.effects import sped_up_samples
from askd_ray.audio.sounds import check_sounds, recording, sound_files, synthetic_noises, synthetic_room
from askd_ray.audio.units import PADDED_SAMPLES, SAMPLE_RATE_HZ
from askd_ray.config.augment import Augment, SpecAugment
from askd_ray.errors import AskdError
from askd_ray.randomness import Draw, draw_seed

ALL = {
    "speed": [0.9, 1.1],
    "reverb": {"share": 1.0},
    "noise": {"share": 1.0},
    "telephone": {"share": 1.0},
    "gain_db": [-6, 6],
}
EACH = {name: {name: value} for name, value in ALL.items()} | {"all": ALL}


@pytest.fixture(scope="module")
def clip(speech: Path) -> Waveform:
    """A real prompt of one to four seconds."""
    paths = sorted(p for p in speech.rglob("*.flac") if 1.0 < soundfile.info(p).duration < 4.0)
    return decode(paths[0].read_bytes())


def settings_of(**values: object) -> Augment:
    return Augment.model_validate(values)


def level_db(waveform: Waveform) -> float:
    return 10.0 * np.log10(np.mean(waveform.astype(np.float64) ** 2))


def spectrum(waveform: Waveform) -> tuple[Waveform, Waveform]:
    """Power at each frequency in Hz."""
    return np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ), np.abs(np.fft.rfft(waveform)) ** 2


def test_seeds_of_the_first_copy_are_stable():
    """As long as they do, the demo's figures in the log can be computed again."""
    assert draw_seed(7, 2, "a/b.flac", "mask") == Draw(7, 2, "a/b.flac").seed_of("mask") == 266323187314290147
    assert draw_seed(7, 2, "a/b.flac", "window") == Draw(7, 2, "a/b.flac", copy=0).seed_of("window")
    assert len({Draw(7, 2, "a/b.flac", copy).seed_of("mask") for copy in range(4)}) == 4


@pytest.mark.parametrize("name", EACH)
def test_draws_are_pure_functions(clip: Waveform, name: str):
    augmentation, original = settings_of(**EACH[name]), clip.copy()
    first = augment(clip, augmentation, Draw(1, 0, "u"))
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    states = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    again = augment(clip.copy(), augmentation, Draw(1, 0, "u"))
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(clip, original)
    others = [Draw(1, epoch, "u") for epoch in range(1, 8)] + [Draw(2, 0, "u"), Draw(1, 0, "v"), Draw(1, 0, "u", 1)]
    if name != "telephone":  # nothing is drawn of a line but whether it is there
        assert any(not np.array_equal(augment(clip, augmentation, draw), first) for draw in others)
    assert first.dtype == np.float32 and np.isfinite(first).all() and np.abs(first).max() <= 1.0
    assert not np.array_equal(first, clip)


def test_default_changes_nothing(clip: Waveform):
    np.testing.assert_array_equal(augment(clip, Augment(), Draw(1, 0, "u")), clip)
    assert not Augment().changes_speed and not Augment().is_off  # there is SpecAugment
    off = settings_of(spec={"freq_masks": 0, "time_masks": 0})
    assert off.is_off
    assert not any(off.model_copy(update=vars(settings_of(**one)) | {"spec": off.spec}).is_off for one in EACH.values())


@pytest.mark.parametrize("part", ["reverb", "noise", "telephone"])
def test_share_of_augmented_utterances(clip: Waveform, part: str):
    augmentation = settings_of(**{part: {"share": 0.3}})
    changed = [
        not np.array_equal(augment(clip[:1600], augmentation, Draw(0, 0, f"u{i}")), clip[:1600]) for i in range(200)
    ]
    assert 0.2 < np.mean(changed) < 0.4


def test_draws_of_augmentations_are_independent(clip: Waveform):
    """So that runs with and without it can be compared."""
    quiet = settings_of(gain_db=[-20, -10])
    both = settings_of(gain_db=[-20, -10], telephone={"share": 1.0})
    for i in range(5):
        draw = Draw(0, 0, f"u{i}")
        ratio_db = level_db(augment(clip, both, draw)) - level_db(augment(clip, quiet, draw))
        line_db = level_db(augment(clip, settings_of(telephone={"share": 1.0}), draw)) - level_db(clip)
        assert ratio_db == pytest.approx(line_db, abs=0.01)


factors = st.integers(50, 200).map(lambda hundredths: hundredths / 100)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, PADDED_SAMPLES), factors)
def test_length_after_speed_change_is_predicted(n_samples: int, factor: float):
    clip = np.zeros(n_samples, np.float32)
    n_expected = sped_up_samples(n_samples, factor)
    draw = Draw(0, 0, "u")
    assert abs(n_expected - n_samples / factor) <= 1.0 + 1e-6
    fits = n_expected <= PADDED_SAMPLES
    assert speed_factor(settings_of(speed=[factor]), draw, n_samples) == (factor if fits else 1.0)
    assert len(augment(clip, settings_of(speed=[factor]), draw)) == (n_expected if fits else n_samples)
    if n_samples < 2000:
        assert Speed(SAMPLE_RATE_HZ, factor)(torch.from_numpy(clip))[0].shape == (n_expected,)


def test_predicted_length_beyond_32_bit_fractions():
    """Rounded up exactly, they would be a sample longer than what comes out."""
    every = [(n, hundredths) for hundredths in range(101, 200) for n in range(400_000, 400_100)]
    lost = [(n, h) for n, h in every if sped_up_samples(n, h / 100) != -(-n * 100 // h)]
    assert len(lost) > 20
    for n_samples, hundredths in lost[:: len(lost) // 10]:
        clip = np.zeros(n_samples, np.float32)
        result = augment(clip, settings_of(speed=[hundredths / 100]), Draw(0, 0, "u"))
        assert len(result) == sped_up_samples(n_samples, hundredths / 100)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_the_pitch(factor: float):
    tone = np.sin(2 * np.pi * 1000 * np.arange(32_000) / SAMPLE_RATE_HZ).astype(np.float32)
    frequencies, power = spectrum(augment(tone, settings_of(speed=[factor]), Draw(0, 0, "u")))
    assert frequencies[power.argmax()] == pytest.approx(1000 * factor, abs=1.0)


def test_speeds_are_equally_frequent():
    augmentation = settings_of(speed=[0.9, 1.0, 1.1])
    drawn = [speed_factor(augmentation, Draw(0, i % 5, f"u{i // 5}"), 16_000) for i in range(900)]
    assert [240 < drawn.count(factor) < 360 for factor in (0.9, 1.0, 1.1)] == [True] * 3


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_snr_is_reached(clip: Waveform, snr_db: float):
    quiet = clip * 0.05  # low enough that nothing has to be scaled down
    for i in range(8):
        noisy = augment(quiet, settings_of(noise={"share": 1.0, "snr_db": [snr_db, snr_db]}), Draw(0, 0, f"u{i}"))
        assert np.abs(noisy).max() < 1.0
        assert level_db(quiet) - level_db(noisy - quiet) == pytest.approx(snr_db, abs=0.1)


def test_loud_mixture_is_scaled_not_clipped(clip: Waveform):
    loud = clip / np.abs(clip).max()
    noisy = augment(loud, settings_of(noise={"share": 1.0, "snr_db": [0, 0]}), Draw(0, 0, "u"))
    assert np.abs(noisy).max() == pytest.approx(1.0, abs=1e-6)
    assert (np.abs(noisy) > 0.999).sum() <= 2
    scale = np.dot(noisy, loud) / np.dot(loud, loud)
    assert level_db(scale * loud) - level_db(noisy - scale * loud) == pytest.approx(0.0, abs=0.5)


def test_noise_spectra_differ():
    frequencies = np.fft.rfftfreq(1 << 19, 1 / SAMPLE_RATE_HZ)
    low, high = (frequencies > 100) & (frequencies < 200), (frequencies > 3200) & (frequencies < 6400)
    drops_db: list[float] = []
    for noise in synthetic_noises():
        assert len(noise) > PADDED_SAMPLES and torch.isfinite(noise).all()
        power = np.abs(np.fft.rfft(noise.numpy())) ** 2
        drops_db.append(10 * np.log10((power[low].mean() + 1e-9) / (power[high].mean() + 1e-9)))
    assert drops_db[:3] == pytest.approx([0.0, 15.0, 30.0], abs=1.5)  # five octaves of 0, 3 and 6 dB
    assert drops_db[3] > 60.0 and drops_db[5] < -60.0


def test_room_keeps_length_and_energy(clip: Waveform):
    for i in range(5):
        wet = augment(clip, settings_of(reverb={"share": 1.0, "rt60_s": [0.5, 0.5]}), Draw(0, 0, f"u{i}"))
        assert len(wet) == len(clip)
        assert level_db(wet) == pytest.approx(level_db(clip), abs=0.01)
    impulse = np.zeros(16_000, np.float32)
    impulse[100] = 0.5
    wet = augment(impulse, settings_of(reverb={"share": 1.0, "rt60_s": [0.5, 0.5]}), Draw(0, 0, "u"))
    assert np.abs(wet).argmax() == 100 and (np.abs(wet[:100]) < 1e-6).all()
    assert (np.abs(wet[101:8000]) > 1e-6).mean() > 0.99


def test_synthetic_room_decays_by_60_db():
    room = synthetic_room(0.6, torch.Generator().manual_seed(0)).numpy()
    assert len(room) == 9_600
    assert level_db(room[1:401]) - level_db(room[-400:]) == pytest.approx(60.0 * 9_200 / 9_600, abs=1.5)
    assert room[0] ** 2 == pytest.approx((room[1:] ** 2).sum(), rel=1e-4)


def test_telephone_passes_only_the_band(clip: Waveform):
    white = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)
    result = augment(white, settings_of(telephone={"share": 1.0}), Draw(0, 0, "u"))
    assert result.shape == white.shape
    frequencies, power = spectrum(result)
    inside = power[(frequencies > 500) & (frequencies < 3000)].mean()
    assert power[frequencies > 4_000].mean() < 1e-5 * inside
    assert power[(frequencies > 20) & (frequencies < 100)].mean() < 0.05 * inside
    tone = np.sin(2 * np.pi * 5_000 * np.arange(32_000) / SAMPLE_RATE_HZ).astype(np.float32)
    assert level_db(augment(tone, settings_of(telephone={"share": 1.0}), Draw(0, 0, "u"))) < level_db(tone) - 50
    result = augment(clip, settings_of(telephone={"share": 1.0}), Draw(0, 0, "u"))
    assert -6.0 < level_db(result) - level_db(clip) < 1.0
    click = np.zeros(12_345, np.float32)
    click[5_000] = 0.9
    result = augment(click, settings_of(telephone={"share": 1.0}), Draw(0, 0, "u"))
    assert abs(int(result.argmax()) - 5_000) <= 2 and len(result) == 12_345  # neither late nor turned round


def test_gain_changes_the_level(clip: Waveform):
    quiet = clip * 0.05
    for gain_db in (-12.0, 6.0):
        result = augment(quiet, settings_of(gain_db=[gain_db, gain_db]), Draw(0, 0, "u"))
        np.testing.assert_allclose(result, quiet * 10 ** (gain_db / 20), rtol=1e-5)
    drawn = [level_db(augment(quiet, settings_of(gain_db=[-6, 6]), Draw(0, 0, f"u{i}"))) for i in range(60)]
    assert min(drawn) < level_db(quiet) - 4 and max(drawn) > level_db(quiet) + 4
    assert np.abs(augment(clip, settings_of(gain_db=[60, 60]), Draw(0, 0, "u"))).max() == pytest.approx(1.0, abs=1e-6)


def test_silence_stays_silent():
    silence = np.zeros(8_000, np.float32)
    without_speed = {name: value for name, value in ALL.items() if name not in ("speed", "telephone")}
    np.testing.assert_array_equal(augment(silence, settings_of(**without_speed), Draw(0, 0, "u")), silence)


@pytest.mark.parametrize("masks", [SpecAugment(), SpecAugment(freq_masks=3, time_share=0.4), SpecAugment(freq_width=0)])
def test_masks_equal_torchaudio(masks: SpecAugment):
    log_mel = torch.randn(80, 321, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        state = torch.random.get_rng_state()
        found = spec_augment(log_mel, masks, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        expected, mean = log_mel[None], float(log_mel.mean())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(masks.freq_masks):
                expected = mask_along_axis(expected, masks.freq_width, mean, axis=1)
            for _ in range(masks.time_masks):
                expected = mask_along_axis(expected, int(masks.time_share * 321), mean, axis=2)
        torch.testing.assert_close(found, expected[0], rtol=0, atol=0)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder as docs/augmentation.md shows it: noises and rooms beside one another, and a text."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise-b.wav", rng.normal(0, 0.1, (44_100, 2)), 44_100)
    soundfile.write(tmp_path / "noise-a.ogg", rng.normal(0, 0.1, 8_000), 16_000)
    room = np.zeros(4_000)
    room[1_000], room[3_000] = 0.8, 0.3
    soundfile.write(tmp_path / "rir-echo.flac", room, 16_000)
    (tmp_path / "README").write_text("Sounds.")
    (tmp_path / "noise-folder").mkdir()
    return tmp_path


def test_noise_file_fits_any_length(clip: Waveform, sounds: Path):
    assert [p.name for p in sound_files(f"{sounds}/noise-*")] == ["noise-a.ogg", "noise-b.wav"]
    assert recording(sounds / "noise-b.wav").shape == (16_000,)
    assert recording(sounds / "noise-b.wav") is recording(sounds / "noise-b.wav")
    augmentation = settings_of(noise={"share": 1.0, "snr_db": [10, 10], "files": f"{sounds}/noise-*"})
    quiet = np.tile(clip, 4)[:50_000] * 0.05  # longer than both files
    noises = [augment(quiet, augmentation, Draw(0, 0, f"u{i}")) - quiet for i in range(6)]
    for noise in noises:
        assert level_db(quiet) - level_db(noise) == pytest.approx(10.0, abs=0.1)
        assert min(level_db(noise[at : at + 4_000]) for at in range(0, 48_000, 4_000)) > level_db(noise) - 3.0
    assert len({noise.tobytes() for noise in noises}) == 6
    kept = recording(sounds / "noise-b.wav").clone()
    augment(quiet, augmentation, Draw(0, 1, "u"))
    assert torch.equal(recording(sounds / "noise-b.wav"), kept)


def test_silent_noise_file_adds_nothing(clip: Waveform, tmp_path: Path):
    soundfile.write(tmp_path / "noise.wav", np.zeros(200_000), 16_000)
    augmentation = settings_of(noise={"share": 1.0, "files": str(tmp_path / "*.wav")})
    np.testing.assert_array_equal(augment(clip, augmentation, Draw(0, 0, "u")), clip)


def test_room_file_adds_no_delay(sounds: Path):
    augmentation = settings_of(reverb={"share": 1.0, "files": f"{sounds}/rir-*.flac"})
    impulse = np.zeros(10_000, np.float32)
    impulse[500] = 0.5
    result = augment(impulse, augmentation, Draw(0, 0, "u"))
    loudest = np.abs(result).argsort()[-2:][::-1]
    assert loudest.tolist() == [500, 2_500]
    assert result[2_500] / result[500] == pytest.approx(0.3 / 0.8, rel=1e-3)
    assert level_db(result) == pytest.approx(level_db(impulse), abs=0.01)


@pytest.mark.parametrize("n_room", [1, 2, 2_048, 2_050, 9_000, 40_000])
def test_room_is_a_convolution(clip: Waveform, tmp_path: Path, n_room: int):
    """Whatever the blocks are that it is taken in."""
    room = np.random.default_rng(0).normal(0, 0.1, n_room) * np.linspace(1, 0.1, n_room)
    room[0] = 0.9
    soundfile.write(tmp_path / "room.wav", room, 16_000, subtype="FLOAT")
    augmentation = settings_of(reverb={"share": 1.0, "files": str(tmp_path / "room.wav")})
    quiet = clip * 0.1
    result = augment(quiet, augmentation, Draw(0, 0, "u"))
    full = np.convolve(quiet.astype(np.float64), room)[: len(clip)]
    np.testing.assert_allclose(result, full * 10 ** ((level_db(quiet) - level_db(full)) / 20), atol=1e-5)


def test_sound_files_are_checked_before_the_run(sounds: Path):
    fine = {"noise": {"share": 0.5, "files": f"{sounds}/noise-*"}, "reverb": {"share": 1, "files": f"{sounds}/rir-*"}}
    check_sounds(settings_of(**fine))
    check_sounds(Augment())
    wrong = {
        "no-such-folder/*.wav": "matches no file: write a pattern such as",
        "noise-*.mp3": "matches no file",
        "": "matches no file",  # the folder itself
        "*": r"matches .*README, which is no sound",
    }
    for name, message in wrong.items():
        for part in ("noise", "reverb"):
            with pytest.raises(AskdError, match=rf"augment\.{part}\.files = .*{message}") as caught:
                check_sounds(settings_of(**{part: {"share": 0.5, "files": f"{sounds}/{name}"}}))
            assert "\n" not in str(caught.value)
    soundfile.write(sounds / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(AskdError, match=r"empty\.wav, which is no sound"):
        check_sounds(settings_of(noise={"share": 0.5, "files": f"{sounds}/empty.wav"}))


def test_sound_file_damaged_later_is_a_one_line_error(clip: Waveform, sounds: Path):
    shutil.copy(sounds / "README", sounds / "noise-c.wav")
    augmentation = settings_of(noise={"share": 1.0, "files": f"{sounds}/noise-c.wav"})
    with pytest.raises(AskdError, match=r"noise-c\.wav cannot be read as a noise or a room: unreadable audio"):
        augment(clip, augmentation, Draw(0, 0, "u"))
