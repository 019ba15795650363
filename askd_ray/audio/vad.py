"""Voice activity detection with silero-vad (MIT; its wheel holds the weights) on a waveform at 16 kHz."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from silero_vad import load_silero_vad
from silero_vad.sequence_vad import RATE_CONFIG, SileroVADSequence, frame_blocks
from silero_vad.utils_vad import get_speech_timestamps_from_probs

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ

FRAME_SAMPLES, _CONTEXT_SAMPLES = RATE_CONFIG[SAMPLE_RATE_HZ]  # 512: 32 ms
_BLOCK_FRAMES = 512  # frames in one model call: 16 s
_MIN_SPEECH_S = 0.1  # silero's default of 0.25 loses spoken digits


@dataclass(frozen=True)
class Span:
    """A part of a waveform, in samples: from ``start`` up to, but without, ``end``."""

    start: int
    end: int

    @property
    def n_samples(self) -> int:
        """The length in samples."""
        return self.end - self.start


@dataclass(frozen=True)
class VadOptions:
    """Settings for spans of speech, as in OpenAI's ``server_vad``.

    A span begins where the probability reaches ``threshold`` and ends where it stays below for ``silence_s``;
    ``padding_s`` is added on both sides.
    """

    threshold: float = 0.25  # silero's 0.5 loses short words over the telephone; a lost word is worse than some noise
    silence_s: float = 0.3
    padding_s: float = 0.2


class Vad:
    """The detector. It keeps no state between calls and is thread-safe."""

    def __init__(self):
        model = load_silero_vad(sequence=True)
        assert isinstance(model, SileroVADSequence)
        self._session = model.session

    def probs(self, waveform: Waveform) -> NDArray[np.float32]:
        """Return the speech probability of each frame of 32 ms, shape ``(ceil(n_samples / 512),)``."""
        return VadStream(self).push(waveform, last=True)

    def speech(self, waveform: Waveform, options: VadOptions = VadOptions()) -> list[Span]:
        """Return the spans of speech, in order and without overlap."""
        return spans_of(self.probs(waveform), options, len(waveform))

    def run(
        self, frames: NDArray[np.float32], state: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return the probabilities of frames ``(n, 576)``, each with its context in front, and the state after them."""
        probs, hidden, cell = self._session.run(
            ["speech_probs", "hn", "cn"], {"input": frames, "h": state[0], "c": state[1]}
        )
        return np.asarray(probs, np.float32).reshape(-1), (np.asarray(hidden), np.asarray(cell))


@lru_cache
def shared_vad() -> Vad:
    """Return a detector for all tasks of this process: each would take memory and time to load."""
    return Vad()


class VadStream:
    """The detector for audio that arrives in pieces; its output does not depend on the length of the pieces."""

    def __init__(self, vad: Vad):
        self._vad = vad
        self._state = (np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32))
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._rest = np.zeros(0, np.float32)

    def push(self, waveform: Waveform, last: bool = False) -> NDArray[np.float32]:
        """Add a piece and return the probabilities of all full frames; with ``last`` also of an incomplete one."""
        samples = np.concatenate([self._rest, waveform])
        n_whole = len(samples) if last else len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
        whole, self._rest = samples[:n_whole], samples[n_whole:]
        blocks = [np.zeros(0, np.float32)]
        for number, block in enumerate(frame_blocks(whole, FRAME_SAMPLES, _CONTEXT_SAMPLES, _BLOCK_FRAMES)):
            if number == 0:
                block[0, :_CONTEXT_SAMPLES] = self._context
            probs, self._state = self._vad.run(block, self._state)
            self._context = block[-1, -_CONTEXT_SAMPLES:].copy()
            blocks.append(probs)
        return np.concatenate(blocks)


def spans_of(probs: NDArray[np.float32], options: VadOptions, n_samples: int) -> list[Span]:
    """Return the spans of speech, without overlap, from the frame probabilities of a waveform of ``n_samples``."""
    timestamps = get_speech_timestamps_from_probs(
        probs.tolist(),
        threshold=options.threshold,
        min_speech_duration_ms=round(1000 * _MIN_SPEECH_S),
        min_silence_duration_ms=round(1000 * options.silence_s),
        speech_pad_ms=round(1000 * options.padding_s),
        audio_length_samples=n_samples,
    )
    return [Span(int(span["start"]), int(span["end"])) for span in timestamps]
