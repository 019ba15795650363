import numpy as np
import pytest

from askd_ray.audio.cut import cut, encode_flac
from askd_ray.audio.decode import AudioError, decode


@pytest.fixture
def recording(tmp_path, tone, encode):
    path = tmp_path / "long.flac"
    path.write_bytes(encode(tone, "FLAC"))
    return path


def cut_file(path, start_s, end_s, max_s):
    with path.open("rb") as file:
        return cut(file, start_s, end_s, max_s)


def test_a_stretch_is_the_slice(recording, tone):
    stretch = decode(cut_file(recording, 0.5, 1.25, 30.0))
    np.testing.assert_allclose(stretch, tone[8_000:20_000], atol=2**-14)


def test_without_an_end_it_goes_to_the_end(recording, tone):
    np.testing.assert_allclose(decode(cut_file(recording, 1.5, None, 30.0)), tone[24_000:], atol=2**-14)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("mp4", "alac"), ("matroska", "pcm_s16le")])
def test_stretches_of_what_only_ffmpeg_reads(tmp_path, encode_av, tone, container, codec):
    long = np.concatenate([np.zeros(5 * 16_000, np.float32), tone, np.zeros(16_000, np.float32)])
    path = tmp_path / "long"
    path.write_bytes(encode_av(long, container, codec))
    stretch = decode(cut_file(path, 5.5, 6.5, 30.0))
    assert len(stretch) == 16_000
    assert np.corrcoef(stretch, tone[8_000:24_000])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason"),
    [
        (0.5, 0.5, "unreadable audio: no stretch"),
        (-1.0, 0.5, "unreadable audio: no stretch"),
        (1.0, 3.0, "truncated: the recording ends before 3 s"),
        (5.0, None, "truncated: the recording ends before 5 s"),
        (0.0, 1.6, "longer than 1.5 s"),
    ],
)
def test_stretches_that_are_not_there(recording, start_s, end_s, reason):
    with pytest.raises(AudioError, match=f"^{reason}"):
        cut_file(recording, start_s, end_s, max_s=1.5 if end_s == 1.6 else 30.0)


def test_a_rounded_end_may_lie_a_little_behind_the_recording(recording, tone):
    assert len(decode(cut_file(recording, 1.0, 2.05, 30.0))) == len(tone) - 16_000


def test_a_recording_that_is_none(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(b"nothing")
    with pytest.raises(AudioError, match=r"^unreadable audio: "):
        cut_file(path, 0.0, 1.0, 30.0)


def test_flac_clips_what_is_too_loud():
    loud = decode(encode_flac(np.array([2.0, -2.0, 0.5], np.float32)))
    np.testing.assert_allclose(loud, [1.0, -1.0, 0.5], atol=2**-14)
