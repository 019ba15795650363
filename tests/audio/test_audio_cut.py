import numpy as np
import pytest
from audio_files import by_ffmpeg, by_soundfile, damaged, flac_declaring, sweep, vbr_mp3, wav_declaring

from askd_ray.audio.cut import cut, encode_flac
from askd_ray.audio.decode import AudioError, decode

TONE = sweep(2.0)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "long.flac"
    path.write_bytes(by_soundfile(TONE, "FLAC"))
    return path


def cut_file(path, start_s, end_s, max_s):
    with path.open("rb") as file:
        return cut(file, start_s, end_s, max_s)


def test_cut_equals_the_slice(recording):
    chunk = decode(cut_file(recording, 0.5, 1.25, 30.0))
    np.testing.assert_allclose(chunk, TONE[8_000:20_000], atol=2**-14)


def test_cut_without_end_goes_to_the_end(recording):
    np.testing.assert_allclose(decode(cut_file(recording, 1.5, None, 30.0)), TONE[24_000:], atol=2**-14)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("mp4", "alac"), ("matroska", "pcm_s16le")])
def test_cut_of_ffmpeg_formats(tmp_path, container, codec):
    long = np.concatenate([np.zeros(5 * 16_000, np.float32), TONE, np.zeros(16_000, np.float32)])
    path = tmp_path / "long"
    path.write_bytes(by_ffmpeg(long, container, codec))
    chunk = decode(cut_file(path, 5.5, 6.5, 30.0))
    assert len(chunk) == 16_000
    assert np.corrcoef(chunk, TONE[8_000:24_000])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason"),
    [
        (0.5, 0.5, "unreadable audio: no chunk"),
        (-1.0, 0.5, "unreadable audio: no chunk"),
        (1.0, 3.0, "truncated: the recording ends before 3 s"),
        (5.0, None, "truncated: the recording ends before 5 s"),
        (0.0, 1.6, "longer than 1.5 s"),
    ],
)
def test_cut_outside_the_recording_is_refused(recording, start_s, end_s, reason):
    with pytest.raises(AudioError, match=f"^{reason}"):
        cut_file(recording, start_s, end_s, max_s=1.5 if end_s == 1.6 else 30.0)


def test_rounded_end_may_exceed_the_recording(recording):
    assert len(decode(cut_file(recording, 1.0, 2.05, 30.0))) == len(TONE) - 16_000


def test_cut_of_invalid_audio(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(b"nothing")
    with pytest.raises(AudioError, match=r"^unreadable audio: "):
        cut_file(path, 0.0, 1.0, 30.0)


def test_flac_clips_loud_samples():
    loud = decode(encode_flac(np.array([2.0, -2.0, 0.5], np.float32)))
    np.testing.assert_allclose(loud, [1.0, -1.0, 0.5], atol=2**-14)


@pytest.mark.parametrize("loud_first", [True, False])
def test_cut_of_mp3_without_length_header(tmp_path, loud_first):
    """libsndfile guesses it from the first frames; chunks behind that were refused."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 10 * 16_000).astype(np.float32)
    quiet = sweep(40.0) * np.float32(0.05)
    parts = [noise, quiet] if loud_first else [quiet, noise]
    path = tmp_path / "long.mp3"
    path.write_bytes(vbr_mp3(np.concatenate(parts)))
    start_s = 45.0 if loud_first else 35.0
    chunk = decode(cut_file(path, start_s, start_s + 3.0, 30.0))
    expected = quiet[35 * 16_000 : 38 * 16_000]
    assert len(chunk) == 3 * 16_000
    assert max(np.corrcoef(chunk[d : d + 40_000], expected[:40_000])[0, 1] for d in range(0, 4_000)) > 0.9


def test_cut_of_piped_recording(tmp_path):
    for audio in (
        wav_declaring(TONE, 0x7FFF_FFFF),
        wav_declaring(TONE, 0),
        flac_declaring(by_soundfile(TONE, "FLAC"), 0),
        by_ffmpeg(TONE, "flac", "flac", piped=True),
    ):
        path = tmp_path / "piped"
        path.write_bytes(audio)
        np.testing.assert_allclose(decode(cut_file(path, 1.5, 1.9, 30.0)), TONE[24_000:30_400], atol=2**-13)


def test_cut_follows_container_timestamps(tmp_path):
    long = np.concatenate([np.zeros(3 * 16_000, np.float32), TONE])
    path = tmp_path / "gap.mkv"
    path.write_bytes(by_ffmpeg(long, "matroska", "pcm_s16le", gap_s=(2.0, 4.0)))
    chunk = decode(cut_file(path, 7.5, 8.5, 30.0))
    assert np.corrcoef(chunk, TONE[8_000:24_000])[0, 1] > 0.99
    before = decode(cut_file(path, 5.0, 7.5, 30.0))
    assert np.abs(before[: int(1.9 * 16_000)]).max() < 0.01


def test_cut_of_damaged_part_is_refused(tmp_path):
    path = tmp_path / "damaged.aac"
    path.write_bytes(damaged(by_ffmpeg(sweep(8.0), "adts", "aac")))
    with pytest.raises(AudioError, match=r"^damaged: packets lost: 1"):
        cut_file(path, 3.0, 5.0, 30.0)
    assert len(decode(cut_file(path, 5.0, 7.0, 30.0))) == 32_000


def test_cut_of_chained_ogg_is_refused(tmp_path):
    path = tmp_path / "chained.ogg"
    path.write_bytes(by_soundfile(TONE, "OGG", "VORBIS") * 2)
    with pytest.raises(AudioError, match=r"^unreadable audio: 2 Ogg streams in one file"):
        cut_file(path, 0.5, 1.0, 30.0)


def test_playlist_is_refused_as_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(by_soundfile(TONE, "WAV"))
    path = tmp_path / "list.wav"
    path.write_bytes(b"ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(AudioError, match="unreadable"):
        cut_file(path, 0.0, 1.0, 30.0)
