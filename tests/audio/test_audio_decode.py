import io
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from audio_files import (
    by_ffmpeg,
    by_soundfile,
    damaged,
    float_wav,
    ogg_pages,
    seconds_by_ffmpeg,
    sweep,
    vbr_mp3,
    wav_declaring,
    without_end,
)
from decoding_table import BEGIN, CASES, CUT, END, JOINED, PAGE, PLAIN, REFUSED, decode_result, table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import AudioError, decode, duration_s, read_audio
from askd_ray.audio.resample import resample
from askd_ray.audio.waveform import WaveformBuilder

TONE = sweep(2.0)
SOUND = sweep(4.0)


def delay(a, b):
    """Return by how many samples ``a`` is later than ``b``."""
    n = min(len(a), len(b))
    spectra = np.fft.rfft(a[:n], 2 * n) * np.conj(np.fft.rfft(b[:n], 2 * n))
    return abs((np.argmax(np.fft.irfft(spectra)) + n) % (2 * n) - n)


def likeness(a, b):
    """Return the correlation of two waveforms at the best shift of at most 0.1 s: encoders add a little delay."""
    n = min(len(a), len(b)) - 3200
    middle = b[1600 : 1600 + n]
    return max(np.corrcoef(a[shift : shift + n], middle)[0, 1] for shift in range(0, 3200, 1) if len(a) >= shift + n)


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "PCM_U8", 2**-7),
        ("FLAC", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
    ],
)
def test_lossless_formats_keep_the_samples(container, subtype, tolerance):
    decoded = decode(by_soundfile(TONE, container, subtype))
    assert decoded.dtype == np.float32
    assert decoded.shape == TONE.shape
    assert np.abs(decoded - TONE).max() <= tolerance


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_of_libsndfile(container, subtype):
    decoded = decode(by_soundfile(TONE, container, subtype))
    assert abs(len(decoded) - len(TONE)) <= 1600
    assert likeness(decoded, TONE) > 0.99


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "g722"), ("mp4", "aac"), ("mp4", "alac"), ("webm", "libopus"), ("matroska", "pcm_s16le")],
)
def test_formats_of_ffmpeg(container, codec):
    decoded = decode(by_ffmpeg(TONE, container, codec))
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - len(TONE)) <= 1600
    assert likeness(decoded, TONE) > 0.99


def test_channels_are_averaged():
    decoded = decode(by_soundfile(np.stack([TONE, -TONE / 2], axis=1), "WAV", "FLOAT"))
    np.testing.assert_allclose(decoded, TONE / 4, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_to_16_khz(rate_hz):
    seconds = np.arange(rate_hz) / rate_hz
    there = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    here = decode(by_soundfile(there, "WAV", "FLOAT", rate_hz))
    assert len(here) == 16_000
    assert duration_s(here) == 1.0
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(here[400:-400], expected[400:-400], atol=5e-3)


def test_resampling_to_the_same_rate_changes_nothing():
    assert resample(TONE, 16_000) is TONE


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3"])
@pytest.mark.parametrize("kept", [0.95, 0.5])
def test_truncated_files_of_libsndfile(container, kept):
    whole = by_soundfile(TONE, container)
    with pytest.raises(AudioError, match=r"^truncated: "):
        decode(whole[: int(len(whole) * kept)])


@pytest.mark.parametrize(("container", "codec"), [("wav", "g722"), ("webm", "libopus")])
def test_truncated_files_of_ffmpeg(container, codec):
    whole = by_ffmpeg(TONE, container, codec)
    with pytest.raises(AudioError, match=r"^truncated: "):
        decode(whole[: len(whole) // 2])


def test_mp4_without_index_is_refused_with_reason():
    whole = by_ffmpeg(TONE, "mp4", "aac")
    with pytest.raises(AudioError, match=r"^truncated: the box 'mdat' declares \d+ bytes"):
        decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoding_table(case):
    """Each line of the table in docs/serving.md."""
    decoded = decode_result(case.audio())
    assert (decoded.result, decoded.reason) == (case.result, case.reason)
    if case.result != REFUSED:
        assert decoded.seconds == pytest.approx(case.seconds, abs=0.5 if "missing" in case.deviation else 0.25)


def test_docs_page_has_the_decoding_table():
    """`python tests/support/decoding_table.py` updates it."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table()


def test_sound_follows_container_timestamps():
    webm = by_ffmpeg(SOUND, "webm", "libopus", gap_s=(1.0, 2.5))
    found = read_audio(webm)
    assert likeness(found.waveform[:16_000], SOUND[:16_000]) > 0.99
    assert likeness(found.waveform[3 * 16_000 + 8_000 :], SOUND[16_000:]) > 0.99
    assert np.abs(found.waveform[18_000:55_000]).max() < 0.01
    assert found.notes == ("gap: times without sound: 1, 2.50 s in all, the first at 1.01 s; silence is there",)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp3", "libmp3lame"), ("mp4", "aac"), ("webm", "libopus"), ("ogg", "libopus")]
)
def test_encoder_delay_is_removed(container, codec):
    audio = by_ffmpeg(SOUND, container, codec)
    assert abs(len(decode(audio)) / 16_000 - seconds_by_ffmpeg(audio)) < 0.001
    assert delay(decode(audio), SOUND) <= 0.05 * 16_000


def test_forged_timestamp_does_not_allocate_gigabytes():
    webm = by_ffmpeg(SOUND, "webm", "libopus", gap_s=(1.0, 3_000_000.0))
    with pytest.raises(AudioError, match=r"^longer than 60 s$"):
        read_audio(webm, 60.0)
    with pytest.raises(AudioError, match=r"^too many samples"):
        read_audio(webm)


def test_vbr_mp3_without_header_is_complete():
    """libsndfile takes the first frames' bit rate for that of all: a loud beginning makes the rest vanish."""
    rng = np.random.default_rng(0)
    loud, quiet = rng.uniform(-0.9, 0.9, 10 * 16_000), 0.001 * rng.standard_normal(50 * 16_000)
    for parts in ([loud, quiet], [quiet, loud]):
        mp3 = vbr_mp3(np.concatenate(parts).astype(np.float32))
        assert len(decode(mp3)) / 16_000 == pytest.approx(60.0, abs=0.15)


def test_concatenated_files_are_decoded_in_order():
    for name in JOINED:
        twice = decode(PLAIN[name](SOUND) * 2)
        second = twice[-len(SOUND) - 1_500 :]
        assert likeness(second, SOUND) > 0.98, name


def test_too_many_concatenated_files_are_refused():
    with pytest.raises(AudioError, match=r"^unreadable audio: 1000 files in one, and at most 100"):
        decode(by_soundfile(np.zeros(10, np.float32), "WAV") * 30_000)


def test_damage_becomes_silence_with_a_note_and_is_refused_for_training():
    audio = damaged(PLAIN["aac"](SOUND))
    found = read_audio(audio)
    assert [message.partition(":")[0] for message in found.missing] == ["damaged"]
    assert abs(len(found.waveform) - len(decode(PLAIN["aac"](SOUND)))) <= 1_024
    with pytest.raises(AudioError, match=r"^damaged: packets lost: 1, 0\.\d\d s in all, the first at 2\.\d\d s"):
        decode(audio)


def test_heavy_damage_is_refused_unless_partial():
    pages = ogg_pages(by_ffmpeg(sweep(12.0), "ogg", "libopus"))
    holed = b"".join([*pages[:3], *pages[7:]])
    with pytest.raises(AudioError, match=r"^damaged: packets lost: 1, 4\.0"):
        read_audio(holed)
    found = read_audio(holed, partial=True)
    assert len(found.waveform) / 16_000 == pytest.approx(12.0, abs=0.05)


@pytest.mark.parametrize("name", CUT)
def test_truncated_file_is_decoded_when_partial(name):
    if name in ("mp4 (AAC)", "ogg (Vorbis)"):  # the index lies at the end; the first page of sound is cut
        with pytest.raises(AudioError, match=r"^truncated"):
            read_audio(without_end(PLAIN[name](SOUND)), partial=True)
        return
    found = read_audio(without_end(PLAIN[name](SOUND)), partial=True)
    assert [message.partition(":")[0] for message in found.missing] == ["truncated"]
    assert 1.0 <= len(found.waveform) / 16_000 <= 3.0


def test_hour_of_stereo_has_the_right_length(monkeypatch):
    """Channels are averaged before they are counted."""
    monkeypatch.setattr("askd_ray.audio.waveform.MAX_SAMPLES", len(SOUND) + 16_000)
    six = np.stack([SOUND] * 6, axis=1)
    for audio in (by_soundfile(six, "WAV", "PCM_16"), by_soundfile(six[:, :2], "MP3")):
        assert len(decode(audio)) == pytest.approx(len(SOUND), abs=1_600)


def test_integer_scaled_float_wav():
    found = read_audio(float_wav(SOUND, 32_768.0))
    np.testing.assert_allclose(found.waveform, SOUND, atol=1e-6)
    assert found.notes == ("scaled: its samples are integers written as floats, and were divided by 32768",)


LIES: dict[str, Callable[[bytes, float], bytes]] = {
    "none": lambda audio, at: audio,
    "joined": lambda audio, at: audio * 2,
    "cut": lambda audio, at: audio[: int(len(audio) * at)],
    "damaged": lambda audio, at: damaged(audio, at, 8),
    "zeros behind": lambda audio, at: audio + bytes(int(1_000 * at)),
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@example(name="mp4 (ALAC)", length_s=2.9, lie="damaged", at=0.765625)
@given(
    name=st.sampled_from(sorted(PLAIN)),
    length_s=st.sampled_from([0.3, 1.1, 2.9]),
    lie=st.sampled_from(sorted(LIES)),
    at=st.floats(0.05, 0.95),
)
def test_decoded_length_equals_ffmpeg(name, length_s, lie, at):
    """Whatever FFmpeg decodes to n seconds gives n seconds, within 50 ms, or a refusal that is true."""
    audio = LIES[lie](plain(name, length_s), at)
    try:
        found = read_audio(audio)
    except AudioError as error:
        reason = str(error).partition(":")[0]
        allowed = {"cut": {"truncated", "unreadable audio"}, "damaged": {"damaged", "truncated", "unreadable audio"}}
        assert reason in allowed.get(lie, set()), error
        return
    decoded_s = [seconds_by_ffmpeg(audio)]
    if lie == "joined":  # of some kinds FFmpeg hears only the first
        decoded_s.append(2 * seconds_by_ffmpeg(plain(name, length_s)))
    silence_s = sum(float(re.findall(r"([\d.]+) s in all", message)[0]) for message in (*found.missing, *found.notes))
    assert decoded_s[-1] - 0.05 <= len(found.waveform) / 16_000 <= max(decoded_s) + silence_s + 0.05


@lru_cache(maxsize=64)
def plain(name, length_s):
    return PLAIN[name](sweep(length_s))


@pytest.mark.parametrize("declared", [0, *range(64_000, 2**32, 2**27)])
def test_wav_length_ignores_a_wrong_header(declared):
    """Only a length that nothing but a file that was cut has is refused."""
    audio = wav_declaring(SOUND, declared)
    n_bytes = 2 * len(SOUND)
    if n_bytes < declared < 0x7F00_0000:
        with pytest.raises(AudioError, match=rf"^truncated: the data chunk declares {declared} bytes, and {n_bytes}"):
            decode(audio)
    elif 0 < declared < n_bytes:
        with pytest.raises(AudioError, match=r"^truncated: .* bytes behind it are in no chunk"):
            decode(audio)
    else:
        assert len(decode(audio)) == len(SOUND)


@pytest.mark.parametrize("audio", [b"", b"no audio at all", b"RIFF\x00\x00\x00\x00WAVE", bytes(10_000)])
def test_invalid_audio_is_refused(audio):
    with pytest.raises(AudioError, match=r"^unreadable audio: "):
        decode(audio)


def test_file_without_samples_is_refused():
    with pytest.raises(AudioError, match=r"^unreadable audio: no samples"):
        decode(by_soundfile(np.zeros(0, np.float32), "WAV"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_samples_are_refused(bad):
    spoilt = TONE.copy()
    spoilt[77] = bad
    with pytest.raises(AudioError, match=r"^not finite: "):
        decode(by_soundfile(spoilt, "WAV", "FLOAT"))


@pytest.mark.parametrize("rate_hz", [1_000, 1_000_000])
def test_implausible_sample_rates_are_refused(rate_hz):
    with pytest.raises(AudioError, match=rf"^unreadable audio: {rate_hz} Hz"):
        decode(by_soundfile(TONE, "WAV", "PCM_16", rate_hz))


def test_length_limit():
    for audio in (by_soundfile(TONE, "WAV"), by_ffmpeg(TONE, "matroska", "pcm_s16le")):
        assert len(decode(audio, max_s=2.0)) == len(TONE)
        with pytest.raises(AudioError, match=r"^longer than 1\.9 s$"):
            decode(audio, max_s=1.9)


def test_decoding_stops_at_the_limit(monkeypatch):
    grown = []
    add = WaveformBuilder.add
    monkeypatch.setattr(WaveformBuilder, "add", lambda self, s, rate_hz: grown.append(len(s)) or add(self, s, rate_hz))
    minute = np.zeros(16_000 * 60, np.float32)
    for audio in (by_soundfile(minute, "FLAC"), by_ffmpeg(minute, "mp4", "aac")):
        grown.clear()
        with pytest.raises(AudioError, match="longer than 1 s"):
            decode(audio, max_s=1.0)
        assert sum(grown) <= 5 * 16_000


def test_fetched_g722_prompts_are_flac(speech):
    info = soundfile.info(io.BytesIO((speech / "audio" / "activated.flac").read_bytes()))
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    assert 0.5 < info.duration < 2.0


def test_too_many_samples_are_refused(monkeypatch):
    monkeypatch.setattr("askd_ray.audio.waveform.MAX_SAMPLES", len(TONE) - 1)
    for container in ("FLAC", "WAV"):
        with pytest.raises(AudioError, match="too many samples"):
            decode(by_soundfile(TONE, container, "PCM_16"))


def test_playlist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """FFmpeg would follow it, and say what somebody else's file holds."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "secret.wav", np.zeros(16_000), 16_000)
    listed = b"ffconcat version 1.0\nfile secret.wav\n"
    with av.open(io.BytesIO(listed)) as container:  # so it is without our list of containers
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000
    with pytest.raises(AudioError, match="unreadable"):
        decode(listed)


def test_loud_click_from_damage_does_not_change_the_scale(monkeypatch):
    """Damaged frames of MP3 come out thousands of times too loud: that is no scale of integers."""
    bang = SOUND.copy()
    bang[20_000:20_010] = 5_000.0
    monkeypatch.setattr("askd_ray.audio.packets._samples", lambda frame: bang[: frame.samples, None])
    found = read_audio(PLAIN["mp3 without Xing header"](SOUND))
    assert np.abs(found.waveform).max() == 1.0
    assert np.abs(found.waveform[:19_000]).max() > 0.4
    assert [message.partition(":")[0] for message in found.missing] == ["damaged"]


def test_unknown_codec_is_refused():
    audio = bytearray(by_soundfile(SOUND, "WAV", "PCM_16"))
    audio[20:22] = b"\x34\x12"
    with pytest.raises(AudioError, match=r"^unreadable audio: no decoder for its codec$"):
        decode(bytes(audio))


def test_memory_error_is_not_reported_as_damage(monkeypatch):
    def without_memory(frame):
        raise av.error.MemoryError(12, "no memory")

    monkeypatch.setattr("askd_ray.audio.packets._samples", without_memory)
    with pytest.raises(AudioError, match=r"^unreadable audio: it asks for more memory than there is$"):
        read_audio(PLAIN["mp4 (AAC)"](SOUND))
