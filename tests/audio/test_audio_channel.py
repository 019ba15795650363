import io

import av
import numpy as np
import pytest
from audio_files import by_soundfile

from askd_ray.audio.channel import read_channel
from askd_ray.audio.decode import AudioError, decode


@pytest.fixture(scope="module")
def sides():
    """Two seconds of noise for each side of a call, shape (2, n_samples)."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32_000)).astype(np.float32)


def encode_stereo(samples, container, codec):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=16_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            (samples * 32_767).astype(np.int16).T.reshape(1, -1), format="s16", layout="stereo"
        )
        frame.rate, frame.pts = 16_000, 0
        fit = av.AudioResampler(
            format=stream.format, layout="stereo", rate=16_000, frame_size=stream.codec_context.frame_size or None
        )
        for piece in [*fit.resample(frame), *fit.resample(None), None]:
            out.mux(stream.encode(piece))
    return buffer.getvalue()


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_channel_equals_the_written_side(sides, container, channel):
    file = io.BytesIO(by_soundfile(sides.T, container))
    np.testing.assert_allclose(decode(read_channel(file, channel, 0.0, None, 30.0)), sides[channel], atol=2**-14)
    file.seek(0)
    chunk = decode(read_channel(file, channel, 0.5, 1.25, 30.0))
    np.testing.assert_allclose(chunk, sides[channel][8_000:20_000], atol=2**-14)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(("container", "codec"), [("mp4", "alac"), ("matroska", "pcm_s16le"), ("mp4", "aac")])
def test_channel_of_ffmpeg_formats(sides, container, codec, channel):
    smooth = np.stack([np.convolve(side, np.ones(32) / 8, "same") for side in sides]).clip(-0.9, 0.9)
    chunk = decode(read_channel(io.BytesIO(encode_stereo(smooth, container, codec)), channel, 0.5, 1.5, 30.0))
    assert len(chunk) == 16_000
    like = [np.corrcoef(chunk, side[8_000:24_000])[0, 1] for side in smooth]
    assert like[channel] > 0.95 and abs(like[1 - channel]) < 0.2


@pytest.mark.parametrize(
    ("channel", "start_s", "end_s", "max_s", "message"),
    [
        (2, 0.0, None, 30.0, "^no channel 2: the recording has 2, counted from 0$"),
        (0, 1.0, 3.0, 30.0, "^truncated: the recording ends before 3 s$"),
        (0, 5.0, None, 30.0, "^truncated: the recording ends before 5 s$"),
        (0, 0.0, 2.0, 1.0, "^longer than 1 s$"),
    ],
)
def test_missing_channel_or_time_is_refused(sides, channel, start_s, end_s, max_s, message):
    for data in (by_soundfile(sides.T, "FLAC"), encode_stereo(sides, "matroska", "pcm_s16le")):
        with pytest.raises(AudioError, match=message):
            read_channel(io.BytesIO(data), channel, start_s, end_s, max_s)


def test_channel_of_invalid_audio():
    with pytest.raises(AudioError, match=r"^unreadable audio: no decoder takes it$"):
        read_channel(io.BytesIO(b"no audio at all" * 100), 0, 0.0, None, 30.0)
