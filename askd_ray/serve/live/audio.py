"""Streamed audio: decode and resample it to 16 kHz, and detect the turns of the speaker."""

from dataclasses import dataclass
from typing import Literal

import av
import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import FRAME_SAMPLES, Vad, VadOptions, VadStream

WireFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_CODECS: dict[WireFormat, str] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
_FLUSH_SAMPLES = 256  # more than the delay of a resampler
_FIRST_FRAMES = 2  # successive frames above the threshold that start a turn: a click is no speech


class LiveAudio:
    """Decodes and resamples a stream; the samples do not depend on how the stream is cut into pieces.

    No sample is lost: after :meth:`flush`, ``n`` received samples are ``ceil(n * 16000 / rate_hz)`` samples.
    """

    def __init__(self, form: WireFormat = "audio/pcm", rate_hz: int = 24_000):
        codec = av.CodecContext.create(_CODECS[form], "r")
        assert isinstance(codec, av.AudioCodecContext)
        codec.sample_rate, codec.layout = rate_hz, "mono"
        self._codec, self._rate_hz = codec, rate_hz
        self._begin()
        self._n_sample_bytes = 2 if form == "audio/pcm" else 1
        self._rest = b""

    def push(self, audio: bytes) -> Waveform:
        """Return the received audio at 16 kHz; half a sample at the end waits for its other half."""
        audio = self._rest + audio
        whole = len(audio) // self._n_sample_bytes * self._n_sample_bytes
        audio, self._rest = audio[:whole], audio[whole:]
        pieces = [np.zeros(0, np.float32)]
        if audio:
            for frame in self._codec.decode(av.Packet(audio)):
                self._n_received += frame.samples
                pieces.append(self._resample(frame))
        waveform = np.concatenate(pieces)
        self._n_returned += len(waveform)
        return waveform

    def flush(self) -> Waveform:
        """Return the last samples, which the resampler delays until it gets the next ones.

        Audio that is pushed later starts a new stream; half a sample keeps waiting.
        """
        n_left = -(-self._n_received * SAMPLE_RATE_HZ // self._rate_hz) - self._n_returned
        # Flushing the resampler returns nothing after very few samples; pushing silence always works.
        silence = av.AudioFrame.from_ndarray(np.zeros((1, _FLUSH_SAMPLES), np.int16), format="s16", layout="mono")
        silence.sample_rate = self._rate_hz
        rest = self._resample(silence)[:n_left]
        self._begin()
        return rest

    def _begin(self) -> None:
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
        self._n_received, self._n_returned = 0, 0  # samples since then

    def _resample(self, frame: av.AudioFrame) -> Waveform:
        pieces = [piece.to_ndarray().reshape(-1) for piece in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, np.float32), *pieces]).astype(np.float32, copy=False)


@dataclass(frozen=True)
class TurnEvent:
    """The start (``started``) or the end of a turn, at a sample of the stream."""

    started: bool
    sample: int


class TurnDetector:
    """Detects the start and the end of turns while audio arrives.

    ``options`` may change at any time. ``speaking`` is whether a turn is already in progress.
    """

    # Not silero's VADIterator: it takes pieces of exactly 512 samples, and starts a turn at a click of one frame.

    def __init__(self, vad: Vad, options: VadOptions, speaking: bool = False):
        self._stream, self.options = VadStream(vad), options
        self._n_frames, self._n_speech, self._n_silence = 0, 0, 0  # the last two: successive frames
        self.speaking = speaking

    def push(self, waveform: Waveform) -> list[TurnEvent]:
        """Return the starts and ends of turns, in order."""
        events: list[TurnEvent] = []
        silence_frames = max(1, samples_of(self.options.silence_s) // FRAME_SAMPLES)
        for prob in self._stream.push(waveform):
            self._n_frames += 1
            is_speech = bool(prob >= self.options.threshold)
            self._n_speech, self._n_silence = (self._n_speech + 1, 0) if is_speech else (0, self._n_silence + 1)
            if not self.speaking and self._n_speech >= _FIRST_FRAMES:
                self.speaking = True
                start = (self._n_frames - _FIRST_FRAMES) * FRAME_SAMPLES - samples_of(self.options.padding_s)
                events.append(TurnEvent(True, max(0, start)))
            elif self.speaking and self._n_silence >= silence_frames:
                self.speaking = False
                events.append(TurnEvent(False, self._n_frames * FRAME_SAMPLES))
        return events
