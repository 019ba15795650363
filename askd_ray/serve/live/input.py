"""The audio input of a session: it divides the received audio into turns, and turns into items to transcribe.

Every sample goes into one item, or is cleared, or is silence that turn detection skips. The events ``committed`` and
``cleared`` state their part of the audio.
"""

import asyncio
from typing import Literal

import numpy as np

from askd_ray.audio.chunking import MIN_CHUNK_S, SEARCH_S, quietest
from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import VadOptions
from askd_ray.models.transcript import Decoding
from askd_ray.serve.live.audio import LiveAudio, TurnDetector
from askd_ray.serve.live.buffer import AudioBuffer
from askd_ray.serve.live.events import EventError, EventSender
from askd_ray.serve.live.settings import SessionSettings, TranscriptionSettings
from askd_ray.serve.live.turns import MIN_PARTIAL_S, Turn, TurnTranscriber
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService

MAX_TURN_S = 20.0  # a longer turn is committed up to its last quiet point
MAX_BUFFER_S = 120.0  # the same limit without turn detection
MIN_COMMIT_S = 0.1  # OpenAI's limit: less audio is no utterance, and stays in the buffer
_ONSET_S = 0.5  # of silence to keep besides the padding: the VAD detects speech a little after its start
CommitReason = Literal["client", "speech_stopped", "max_length", "session_end"]


class AudioInput:
    """The audio input of a session. ``default_model`` transcribes while the settings name no model."""

    def __init__(self, service: TranscriptionService, events: EventSender, default_model: str):
        self._service, self._events, self._default = service, events, default_model
        self.settings = SessionSettings()
        self._transcriber = TurnTranscriber(service, events)
        self._audio = LiveAudio()
        self._buffer = AudioBuffer()
        self._turn: Turn | None = None
        self._last_item: str | None = None
        self._detector: TurnDetector | None = None
        self._start_detector()

    async def append(self, audio: bytes) -> None:
        """Process audio in the format of the settings."""
        await self._receive_audio(self._audio.push(audio))

    async def commit(self) -> None:
        """Turn the buffer into an item, as the client asks.

        Raises :class:`EventError` when the buffer has too little audio.
        """
        rest = self._audio.flush()
        if self._turn is None and self._buffer.n_samples + len(rest) < samples_of(MIN_COMMIT_S):
            await self._receive_audio(rest)
            message = f"input_audio_buffer.commit: at least {1000 * MIN_COMMIT_S:g} ms of audio are needed"
            raise EventError(message, "input_audio_buffer_commit_empty")
        self._buffer.append(rest)
        await self._commit(self._buffer.end, "client")
        self._start_detector()

    async def clear(self) -> None:
        """Drop the buffer."""
        self._buffer.append(self._audio.flush())
        self._audio = LiveAudio(self.settings.format.type, self.settings.format.rate_hz)  # drops half a sample too
        self._drop_turn()
        start = self._buffer.start
        self._buffer.take_until(self._buffer.end)
        self._start_detector()
        span = {"audio_start_ms": _ms(start), "audio_end_ms": _ms(self._buffer.end)}
        await self._events.send_event("input_audio_buffer.cleared", **span)

    async def change_settings(self, settings: SessionSettings) -> None:
        """Use new settings, except for turn detection, which :meth:`change_turn_detection` applies."""
        if settings.format != self.settings.format:
            await self._receive_audio(self._audio.flush())
            self._audio = LiveAudio(settings.format.type, settings.format.rate_hz)
        self.settings = settings
        if settings.transcription is None and self._turn is not None:
            self._turn.drop_partial()

    async def change_turn_detection(self) -> None:
        """Apply new turn detection settings. The buffer stays in its turn, or is searched for turns."""
        detection = self.settings.turn_detection
        if detection is not None and self._detector is not None:
            self._detector.options = detection.to_vad_options()
            return
        self._start_detector(speaking=self._turn is not None)
        if detection is None:
            return
        if self._turn is not None:
            await self._cut_long_turn()
            return
        # No detector has seen the buffer: receive it again.
        buffered = self._buffer.rewind()
        self._offset = self._buffer.end
        await self._receive_audio(buffered)

    async def finish(self, timeout_s: float) -> None:
        """Commit the buffer and wait up to ``timeout_s`` for the transcripts, before the session ends."""
        self._buffer.append(self._audio.flush())
        if self._buffer.n_samples and (self._turn is not None or self._detector is None):
            await self._commit(self._buffer.end, "session_end")
        await self._transcriber.drain(timeout_s)

    def close(self) -> None:
        """Cancel all work."""
        self._drop_turn()
        self._transcriber.close()

    def _start_detector(self, speaking: bool = False) -> None:
        """Start turn detection at the next sample, if the settings enable it."""
        options = None if self.settings.turn_detection is None else self.settings.turn_detection.to_vad_options()
        self._detector = None if options is None else TurnDetector(self._service.vad, options, speaking)
        self._offset = self._buffer.end  # the sample of the session at which the detector starts

    async def _receive_audio(self, waveform: Waveform) -> None:
        """Process new audio at 16 kHz."""
        if self._detector is None:
            self._buffer.append(waveform)
            await self._cut_long_turn()
            return
        for piece in np.array_split(waveform, max(1, len(waveform) // samples_of(MIN_PARTIAL_S))):
            await self._detect_turns(piece, self._detector)
            await asyncio.sleep(0)  # two minutes may arrive in one event: let other sessions run in between

    async def _detect_turns(self, waveform: Waveform, detector: TurnDetector) -> None:
        """Begin and end turns in new audio."""
        self._buffer.append(waveform)
        for event in detector.push(waveform):
            sample = self._offset + event.sample
            if event.started:
                self._buffer.take_until(sample)  # silence
                turn = self._turn = Turn()
                start_ms = _ms(self._buffer.start)
                await self._events.send_event(
                    "input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=turn.item_id
                )
            elif self._turn is not None:
                await self._events.send_event(
                    "input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=self._turn.item_id
                )
                await self._commit(sample, "speech_stopped")
        if self._turn is None:  # silence: keep only the audio that the next turn may include
            self._buffer.take_until(self._buffer.end - samples_of(detector.options.padding_s + _ONSET_S))
            return
        await self._cut_long_turn()
        if self.settings.transcription is not None and self._turn.needs_partial(self._buffer.n_samples):
            self._transcriber.transcribe_partial(self._turn, self._buffer.waveform(), self._transcribe_options())

    async def _cut_long_turn(self) -> None:
        """Commit a too long turn up to its last quiet point; the rest begins the next turn."""
        max_samples = samples_of(MAX_BUFFER_S if self._detector is None else MAX_TURN_S)
        while self._buffer.n_samples >= max_samples:
            last = max_samples - samples_of(MIN_CHUNK_S)
            quiet = quietest(self._buffer.waveform()[:max_samples], max(0, last - samples_of(SEARCH_S)), last)
            await self._commit(self._buffer.start + quiet, "max_length")
            self._turn = None if self._detector is None else Turn()

    async def _commit(self, end: int, reason: CommitReason) -> None:
        """Turn the audio before a sample of the session into an item, and transcribe it."""
        turn, self._turn = self._turn or Turn(), None
        turn.drop_partial()
        start, waveform = self._buffer.start, self._buffer.take_until(end)
        previous_item, self._last_item = self._last_item, turn.item_id
        span = {"audio_start_ms": _ms(start), "audio_end_ms": _ms(self._buffer.start)}
        await self._events.send_event(
            "input_audio_buffer.committed", item_id=turn.item_id, previous_item_id=previous_item, reason=reason, **span
        )
        if self.settings.transcription is not None:
            self._transcriber.transcribe(turn, waveform, self._transcribe_options(self.settings.logprobs))

    def _drop_turn(self) -> None:
        if self._turn is not None:
            self._turn.drop_partial()
            self._turn = None

    def _transcribe_options(self, confidence: bool = False) -> TranscribeOptions:
        settings, detection = self.settings.transcription or TranscriptionSettings(), self.settings.turn_detection
        vad_options = VadOptions() if detection is None else detection.to_vad_options()
        decoding = Decoding(prompt=settings.prompt, confidence=confidence)
        return TranscribeOptions(settings.model or self._default, settings.language, decoding, vad_options)


def _ms(sample: int) -> int:
    return round(1000 * sample / SAMPLE_RATE_HZ)
