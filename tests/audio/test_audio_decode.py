import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from askd_ray.audio.decode import AudioError, decode, duration_s, resample


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
def test_lossless_formats_give_the_samples_back(tone, encode, container, subtype, tolerance):
    decoded = decode(encode(tone, container, subtype))
    assert decoded.dtype == np.float32
    assert decoded.shape == tone.shape
    assert np.abs(decoded - tone).max() <= tolerance


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_of_libsndfile(tone, encode, container, subtype):
    decoded = decode(encode(tone, container, subtype))
    assert abs(len(decoded) - len(tone)) <= 1600
    assert likeness(decoded, tone) > 0.99


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "g722"), ("mp4", "aac"), ("mp4", "alac"), ("webm", "libopus"), ("matroska", "pcm_s16le")],
)
def test_formats_of_ffmpeg(tone, encode_av, container, codec):
    decoded = decode(encode_av(tone, container, codec))
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - len(tone)) <= 1600
    assert likeness(decoded, tone) > 0.99


def test_channels_are_averaged(tone, encode):
    decoded = decode(encode(np.stack([tone, -tone / 2], axis=1), "WAV", "FLOAT"))
    np.testing.assert_allclose(decoded, tone / 4, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_become_16_khz(rate_hz, encode):
    seconds = np.arange(rate_hz) / rate_hz
    there = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    here = decode(encode(there, "WAV", "FLOAT", rate_hz))
    assert len(here) == 16_000
    assert duration_s(here) == 1.0
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(here[400:-400], expected[400:-400], atol=5e-3)


def test_resampling_to_the_same_rate_changes_nothing(tone):
    assert resample(tone, 16_000) is tone


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3"])
@pytest.mark.parametrize("kept", [0.95, 0.5])
def test_truncated_files_of_libsndfile(tone, encode, container, kept):
    whole = encode(tone, container)
    with pytest.raises(AudioError, match=r"^truncated: "):
        decode(whole[: int(len(whole) * kept)])


@pytest.mark.parametrize(("container", "codec"), [("wav", "g722"), ("webm", "libopus")])
def test_truncated_files_of_ffmpeg(tone, encode_av, container, codec):
    whole = encode_av(tone, container, codec)
    with pytest.raises(AudioError, match=r"^truncated: "):
        decode(whole[: len(whole) // 2])


def test_an_mp4_without_its_index_is_unreadable(tone, encode_av):
    whole = encode_av(tone, "mp4", "aac")
    with pytest.raises(AudioError, match=r"^unreadable audio: "):
        decode(whole[: len(whole) // 2])


def test_a_wav_from_a_stream_declares_no_length(tone, encode):
    whole = bytearray(encode(tone, "WAV", "PCM_16"))
    at = whole.index(b"data") + 4
    whole[4:8] = whole[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(whole))) == len(tone)


@pytest.mark.parametrize("audio", [b"", b"no audio at all", b"RIFF\x00\x00\x00\x00WAVE", bytes(10_000)])
def test_what_is_no_audio(audio):
    with pytest.raises(AudioError, match=r"^unreadable audio: "):
        decode(audio)


def test_a_file_without_samples(encode):
    with pytest.raises(AudioError, match=r"^unreadable audio: no samples"):
        decode(encode(np.zeros(0, np.float32), "WAV"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite(tone, encode, bad):
    spoilt = tone.copy()
    spoilt[77] = bad
    with pytest.raises(AudioError, match=r"^not finite: "):
        decode(encode(spoilt, "WAV", "FLOAT"))


@pytest.mark.parametrize("rate_hz", [1_000, 1_000_000])
def test_rates_that_nobody_records_at(tone, encode, rate_hz):
    with pytest.raises(AudioError, match=rf"^unreadable audio: {rate_hz} Hz"):
        decode(encode(tone, "WAV", "PCM_16", rate_hz))


def test_the_limit_is_a_limit(tone, encode, encode_av):
    for audio in (encode(tone, "WAV"), encode_av(tone, "matroska", "pcm_s16le")):
        assert len(decode(audio, max_s=2.0)) == len(tone)
        with pytest.raises(AudioError, match=r"^longer than 1\.9 s$"):
            decode(audio, max_s=1.9)


def test_no_more_than_the_limit_is_decoded(monkeypatch, encode):
    asked = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: asked.append(n) or read(self, n, **k))
    with pytest.raises(AudioError, match="longer than 1 s"):
        decode(encode(np.zeros(16_000 * 60, np.float32), "FLAC"), max_s=1.0)
    assert asked == [16_001]


def test_real_g722_prompts_were_decoded_by_the_fetch(speech):
    info = soundfile.info(io.BytesIO((speech / "audio" / "activated.flac").read_bytes()))
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    assert 0.5 < info.duration < 2.0


def test_too_many_samples_to_hold(tone, encode, monkeypatch):
    monkeypatch.setattr("askd_ray.audio.decode._MAX_SAMPLES", len(tone) - 1)
    for container in ("FLAC", "WAV"):
        with pytest.raises(AudioError, match="too many samples"):
            decode(encode(tone, container, "PCM_16"))


def test_a_list_of_files_is_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """FFmpeg would follow it, and say what somebody else's file holds."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "secret.wav", np.zeros(16_000), 16_000)
    listed = b"ffconcat version 1.0\nfile secret.wav\n"
    with av.open(io.BytesIO(listed)) as container:  # so it is without our list of containers
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000
    with pytest.raises(AudioError, match="unreadable"):
        decode(listed)
