"""Audio that comes piece by piece: from the wire to 16 kHz, and the turns in which somebody speaks."""

from dataclasses import dataclass
from typing import Literal

import av
import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import FRAME_SAMPLES, Vad, VadOptions, VadStream

WireFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_CODECS: dict[WireFormat, str] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
_FLUSH_SAMPLES = 256  # more than a resampler holds back
_FIRST_FRAMES = 2  # in a row above the threshold: a click is no speech


class LiveAudio:
    """Decodes and resamples a stream; the samples do not depend on how it was cut into pieces.

    No sample is lost: ``n`` samples on the wire are ``ceil(n * 16000 / rate_hz)`` after :meth:`flush`.
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
        """Return what came in at 16 kHz; half a sample at the end waits for its other half."""
        audio = self._rest + audio
        whole = len(audio) // self._n_sample_bytes * self._n_sample_bytes
        audio, self._rest = audio[:whole], audio[whole:]
        pieces = [np.zeros(0, np.float32)]
        if audio:
            for frame in self._codec.decode(av.Packet(audio)):
                self._n_wire += frame.samples
                pieces.append(self._resample(frame))
        waveform = np.concatenate(pieces)
        self._n_given += len(waveform)
        return waveform

    def flush(self) -> Waveform:
        """Return the last samples, which the resampler holds back until it knows what follows them.

        What is pushed afterwards begins anew; half a sample goes on waiting.
        """
        n_left = -(-self._n_wire * SAMPLE_RATE_HZ // self._rate_hz) - self._n_given
        # The resampler's own end of stream gives nothing after very few samples; silence pushes them out, always.
        silence = av.AudioFrame.from_ndarray(np.zeros((1, _FLUSH_SAMPLES), np.int16), format="s16", layout="mono")
        silence.sample_rate = self._rate_hz
        held = self._resample(silence)[:n_left]
        self._begin()
        return held

    def _begin(self) -> None:
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
        self._n_wire, self._n_given = 0, 0  # samples that came in and went out since then

    def _resample(self, frame: av.AudioFrame) -> Waveform:
        pieces = [piece.to_ndarray().reshape(-1) for piece in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, np.float32), *pieces]).astype(np.float32, copy=False)


@dataclass(frozen=True)
class TurnEvent:
    """Somebody began (``started``) or ended to speak, at a sample of the stream."""

    started: bool
    sample: int


class TurnDetector:
    """Finds out while audio comes in when somebody begins and ends to speak.

    ``options`` may change at any time. Whoever begins to listen while somebody speaks says so with ``speaking``.
    """

    def __init__(self, vad: Vad, options: VadOptions, speaking: bool = False):
        self._stream, self.options = VadStream(vad), options
        self._n_frames, self._loud, self._quiet = 0, 0, 0
        self.speaking = speaking

    def push(self, waveform: Waveform) -> list[TurnEvent]:
        """Return what began and ended, in order."""
        found: list[TurnEvent] = []
        silence_frames = max(1, samples_of(self.options.silence_s) // FRAME_SAMPLES)
        for prob in self._stream.push(waveform):
            self._n_frames += 1
            loud = bool(prob >= self.options.threshold)
            self._loud, self._quiet = (self._loud + 1, 0) if loud else (0, self._quiet + 1)
            if not self.speaking and self._loud >= _FIRST_FRAMES:
                self.speaking = True
                start = (self._n_frames - _FIRST_FRAMES) * FRAME_SAMPLES - samples_of(self.options.padding_s)
                found.append(TurnEvent(True, max(0, start)))
            elif self.speaking and self._quiet >= silence_frames:
                self.speaking = False
                found.append(TurnEvent(False, self._n_frames * FRAME_SAMPLES))
        return found
