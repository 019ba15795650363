import io

import av
import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def tone():
    """Two seconds at 16 kHz that no moment repeats: a sweep from 200 to 2000 Hz, float32 in [-0.5, 0.5]."""
    t = np.arange(32_000) / 16_000
    return (0.5 * np.sin(2 * np.pi * (200 * t + 450 * t**2))).astype(np.float32)


@pytest.fixture(scope="session")
def encode():
    """Encode samples, shape (n,) or (n, channels), with libsndfile, or with FFmpeg for a codec's name."""

    def _encode(samples, container, subtype=None, rate_hz=16_000):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
        return buffer.getvalue()

    return _encode


@pytest.fixture(scope="session")
def encode_av():
    def _encode(samples, container, codec):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as out:
            stream = out.add_stream(codec, rate=48_000 if codec == "libopus" else 16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray((samples * 32_767).astype(np.int16)[None], format="s16", layout="mono")
            frame.rate, frame.pts = 16_000, 0
            size = stream.codec_context.frame_size
            fit = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate, frame_size=size or None)
            pieces = [*fit.resample(frame), *fit.resample(None)]
            for piece in [*pieces, None]:
                out.mux(stream.encode(piece))
        return buffer.getvalue()

    return _encode
