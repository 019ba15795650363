"""Audio that comes piece by piece: from the wire to 16 kHz, and the turns in which somebody speaks."""

from dataclasses import dataclass
from typing import Literal

import av
import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import FRAME_SAMPLES, Turns, Vad, VadStream

WireFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_CODECS: dict[WireFormat, str] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
_FIRST_FRAMES = 2  # in a row above the threshold: a click is no speech


class LiveAudio:
    """Decodes and resamples a stream; the samples do not depend on how it was cut into pieces."""

    def __init__(self, form: WireFormat = "audio/pcm", rate_hz: int = 24_000):
        codec = av.CodecContext.create(_CODECS[form], "r")
        assert isinstance(codec, av.AudioCodecContext)
        codec.sample_rate, codec.layout = rate_hz, "mono"
        self._codec = codec
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
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
                for piece in self._resampler.resample(frame):
                    pieces.append(np.asarray(piece.to_ndarray(), np.float32).reshape(-1))
        return np.concatenate(pieces)


@dataclass(frozen=True)
class TurnEvent:
    """Somebody began (``started``) or ended to speak, at a sample of the stream."""

    started: bool
    sample: int


class TurnDetector:
    """Finds out while audio comes in when somebody begins and ends to speak."""

    def __init__(self, vad: Vad, turns: Turns):
        self._stream, self._turns = VadStream(vad), turns
        self._n_frames, self._loud, self._quiet = 0, 0, 0
        self.speaking = False

    def push(self, waveform: Waveform) -> list[TurnEvent]:
        """Return what began and ended, in order."""
        found: list[TurnEvent] = []
        silence_frames = max(1, samples_of(self._turns.silence_s) // FRAME_SAMPLES)
        for prob in self._stream.push(waveform):
            self._n_frames += 1
            loud = bool(prob >= self._turns.threshold)
            self._loud, self._quiet = (self._loud + 1, 0) if loud else (0, self._quiet + 1)
            if not self.speaking and self._loud == _FIRST_FRAMES:
                self.speaking = True
                start = (self._n_frames - _FIRST_FRAMES) * FRAME_SAMPLES - samples_of(self._turns.padding_s)
                found.append(TurnEvent(True, max(0, start)))
            elif self.speaking and self._quiet == silence_frames:
                self.speaking = False
                found.append(TurnEvent(False, self._n_frames * FRAME_SAMPLES))
        return found
