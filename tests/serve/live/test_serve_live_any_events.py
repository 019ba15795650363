"""Any sequence of events: no audio is lost, every event is answered, and the answers fit OpenAI's types."""

import asyncio
import base64
import itertools
import json
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from serving import FakeSpeechEngine

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.serve.live import input as live
from askd_ray.serve.live.session import Session
from askd_ray.serve.transcription_service import TranscribeOptions

SERVER_EVENT = TypeAdapter[Any](RealtimeServerEvent)
FORMATS: list[dict[str, Any]] = [
    {"type": "audio/pcm", "rate": 24000},
    {"type": "audio/pcm", "rate": 16000},
    {"type": "audio/pcmu"},
    {"type": "audio/pcma"},
]
LOUD = {"audio/pcm": b"\x00\x40", "audio/pcmu": b"\x8f", "audio/pcma": b"\xa5"}  # about half of full scale
ONSET_MS = 33  # without prefix_padding a turn begins with the first frame that is loud: 32 ms may have begun before
SILENT = {"audio/pcm": b"\x00\x00", "audio/pcmu": b"\xff", "audio/pcma": b"\xd5"}


class LoudnessVad:
    """Detects loud audio as speech."""

    def run(self, frames: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        return (np.abs(frames[:, 64:]).mean(axis=1) > 0.1).astype(np.float32), state


class FakeService:
    """Stores the committed audio and returns no text."""

    def __init__(self):
        self.engine, self.vad = FakeSpeechEngine(), LoudnessVad()
        self.committed: list[Waveform] = []

    async def transcribe(self, waveform: Waveform, options: TranscribeOptions) -> AsyncGenerator[Any]:
        self.committed.append(waveform)
        for nothing in ():
            yield nothing


@dataclass
class Client:
    """A client's state: the audio it sent, the speech in that audio, and the events it received."""

    service: FakeService = field(default_factory=FakeService)
    received: list[dict[str, Any]] = field(default_factory=list)
    audio_format: dict[str, Any] = field(default_factory=lambda: FORMATS[0])
    n_samples: int = 0  # at 16 kHz
    speech: list[tuple[int, int]] = field(default_factory=list)
    n_sent: int = 0  # samples on the wire since the resampler began anew

    async def send(self, event: dict[str, Any]) -> None:
        self.received.append(json.loads(json.dumps(event, allow_nan=False)))

    def appends(self, loud: bool, ms: int, piece_ms: int) -> list[dict[str, Any]]:
        """Return the events of some audio, in pieces."""
        n = ms * self.rate_hz // 1000
        start = self.position
        self.n_sent += n
        if loud:
            self.speech.append((start, self.position))
        sample, n_piece = (LOUD if loud else SILENT)[self.audio_format["type"]], piece_ms * self.rate_hz // 1000
        pieces = [sample * min(n_piece, n - first) for first in range(0, n, n_piece)]
        return [{"type": "input_audio_buffer.append", "audio": base64.b64encode(value).decode()} for value in pieces]

    @property
    def rate_hz(self) -> int:
        return self.audio_format.get("rate", 8000)

    @property
    def position(self) -> int:
        return self.n_samples + math.ceil(self.n_sent * SAMPLE_RATE_HZ / self.rate_hz)

    def flushed(self) -> None:
        """Account for a restart of the resampler: at a commit, a clear, and a new format."""
        self.n_samples, self.n_sent = self.position, 0

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.received if event["type"].endswith(kind)]


def of_input(**fields: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"audio": {"input": fields}}}


APPENDS = st.tuples(st.just("append"), st.booleans(), st.integers(200, 2_500), st.sampled_from([20, 110, 5_000]))
DETECTIONS = st.sampled_from(
    [None, {}, {"silence_duration_ms": 200}, {"prefix_padding_ms": 0}, {"type": "semantic_vad"}]
)
STEPS = (
    APPENDS
    | APPENDS
    | st.sampled_from(["commit", "clear"]).map(lambda value: (value,))
    | DETECTIONS.map(lambda value: ("update", {"turn_detection": value}))
    | st.sampled_from(FORMATS).map(lambda value: ("update", {"format": value}))
    | st.sampled_from([{"transcription": {"language": "de"}}, {"noise_reduction": {"type": "near_field"}}]).map(
        lambda value: ("update", value)
    )
)


async def converse(client: Client, steps: list[tuple[Any, ...]]) -> None:
    session = Session(client.service, client.send, "student")  # pyright: ignore[reportArgumentType]
    for step in steps:
        match step:
            case ("append", loud, ms, piece_ms):
                for event in client.appends(loud, ms, piece_ms):
                    await session.handle(event)
            case ("update", fields):
                if fields.get("format", client.audio_format) != client.audio_format:
                    client.flushed()
                    client.audio_format = fields["format"]
                await session.handle(of_input(**fields))
            case (kind,):
                client.flushed()
                await session.handle({"type": f"input_audio_buffer.{kind}"})
            case _:
                raise AssertionError(step)
    client.flushed()
    await session.finish(10.0)
    await session.handle({"type": "input_audio_buffer.clear"})
    session.close()


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, max_size=14))
def test_every_sample_is_in_an_item_or_cleared_or_silence(steps: list[tuple[Any, ...]]):
    client = Client()
    with patch.object(live, "MAX_TURN_S", 2.0), patch.object(live, "MAX_BUFFER_S", 3.0):
        asyncio.run(asyncio.wait_for(converse(client, steps), 60))
    assert {error["error"]["code"] for error in client.of("error")} <= {"input_audio_buffer_commit_empty"}
    committed, completed = client.of("input_audio_buffer.committed"), client.of("completed")
    # Each item holds what its event says, and is completed.
    spans = {event["item_id"]: (event["audio_start_ms"], event["audio_end_ms"]) for event in committed}
    seconds = {event["item_id"]: event["usage"]["seconds"] for event in completed}
    assert spans.keys() == seconds.keys() and len(spans) == len(committed)
    assert all(abs(seconds[item] - (end - start) / 1000) <= 0.001 for item, (start, end) in spans.items())
    # Items and what was cleared come in order, without overlap; nothing but silence lies between.
    taken = [
        (event["audio_start_ms"], event["audio_end_ms"])
        for event in client.received
        if event["type"] in ("input_audio_buffer.committed", "input_audio_buffer.cleared")
    ]
    total_ms = client.n_samples * 1000 / SAMPLE_RATE_HZ
    edges = [0, *itertools.chain.from_iterable(taken)]
    assert edges == sorted(edges) and edges[-1] == round(total_ms)
    gaps = list(zip(edges[:-1:2], edges[1::2], strict=True))
    for start, end in client.speech:
        for gap_start, gap_end in gaps:
            lost_ms = min(end * 1000 / SAMPLE_RATE_HZ, gap_end) - max(start * 1000 / SAMPLE_RATE_HZ, gap_start)
            assert lost_ms <= ONSET_MS, f"{lost_ms} ms of speech lie between {gap_start} and {gap_end} ms"
    skipped_s = sum(end - start for start, end in gaps) / 1000
    cleared_s = sum(e["audio_end_ms"] - e["audio_start_ms"] for e in client.of("cleared")) / 1000
    accounted_s = sum(seconds.values()) + cleared_s + skipped_s
    assert abs(accounted_s - total_ms / 1000) <= 0.001 * (len(taken) + 1)
    for event in client.received:
        assert_openai_reads(event)


def test_samples_are_unchanged():
    """The samples of the items equal those sent; only silence between turns is missing."""
    client = Client(audio_format=FORMATS[1])
    rng = np.random.default_rng(0)
    audio = [np.zeros(20_000), rng.uniform(0.3, 0.6, 30_000), np.zeros(20_000), rng.uniform(0.3, 0.6, 60_000)]
    samples = np.round(32767 * np.concatenate(audio)).astype("<i2")

    async def scenario() -> None:
        session = Session(client.service, client.send, "student")  # pyright: ignore[reportArgumentType]
        await session.handle(of_input(format=FORMATS[1]))
        for n, piece in enumerate(np.array_split(samples, 77)):
            encoded = base64.b64encode(piece.tobytes()).decode()
            await session.handle({"type": "input_audio_buffer.append", "audio": encoded})
            if n in (20, 50):
                await session.handle(of_input(turn_detection={"silence_duration_ms": 300 + n}))
            if n in (25, 60):
                await session.handle(of_input(turn_detection=None if n == 60 else {}))
            if n == 55:
                await session.handle({"type": "input_audio_buffer.commit"})
        await session.finish(10.0)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    spans = [(e["audio_start_ms"], e["audio_end_ms"]) for e in client.of("input_audio_buffer.committed")]
    assert len(spans) == len(client.service.committed) == 3
    for (start_ms, _), waveform in zip(spans, client.service.committed, strict=True):
        near = range(max(0, 16 * start_ms - 8), 16 * start_ms + 9)
        found = [samples[start : start + len(waveform)] / 32768 for start in near]
        assert any(len(value) == len(waveform) and np.allclose(value, waveform) for value in found)
    assert spans[1][1] == spans[2][0] and spans[2][1] == round(len(samples) / 16)


TEXT = st.text(st.characters(codec=None), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda value: st.lists(value, max_size=3) | st.dictionaries(TEXT, value, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        "session.update",
        "transcription_session.update",
        *(f"input_audio_buffer.{value}" for value in ("append", "commit", "clear")),
    ]
)
EVENTS = JSON | st.fixed_dictionaries(
    {"type": NAMES | JSON},
    optional={
        "event_id": JSON,
        "audio": JSON | st.integers(0, 9_000).map(lambda n: base64.b64encode(bytes(n)).decode()),
        "session": JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "include": JSON | st.just(["item.input_audio_transcription.logprobs"]),
                "audio": JSON
                | st.fixed_dictionaries(
                    {
                        "input": st.fixed_dictionaries(
                            {},
                            optional={
                                "format": JSON | st.sampled_from([FORMATS[0], *FORMATS[2:]]),
                                "transcription": JSON | st.dictionaries(st.sampled_from(["model", "language"]), JSON),
                                "turn_detection": JSON | DETECTIONS,
                                "noise_reduction": JSON,
                            },
                        )
                    }
                ),
            },
        ),
    },
)


@settings(max_examples=40, deadline=None)
@given(events=st.lists(EVENTS, max_size=8))
def test_every_event_is_answered_or_silently_accepted(events: list[Any]):
    client = Client()

    async def settings_of(session: Session) -> Any:
        await session.handle({"type": "session.update", "session": {}})
        return client.received.pop()["session"]

    async def scenario() -> None:
        session = Session(client.service, client.send, "student")  # pyright: ignore[reportArgumentType]
        await session.begin()
        for event in events:
            before, n_received = await settings_of(session), len(client.received)
            await session.handle(event)
            answers = client.received[n_received:]
            kind = event.get("type") if isinstance(event, dict) else None
            if kind != "input_audio_buffer.append":
                assert answers
            for answer in answers:
                assert answer["type"] != "error" or answer["error"]["type"] == "invalid_request_error"
                assert answer["type"] != "error" or await settings_of(session) == before
        await session.finish(10.0)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    for event in client.received:
        assert_openai_reads(event)


def assert_openai_reads(event: dict[str, Any]) -> None:
    """Check that the openai package knows the event, and that each field has the right type."""
    if event["type"] == "transcription_session.updated":  # of the beta: its type wants a secret that only HTTP gives
        assert event["session"]["input_audio_format"] in ("pcm16", "g711_ulaw", "g711_alaw")
        return
    if event.get("session", {}).get("audio", {}).get("input", {}).get("format", {}).get("rate") == 16000:
        event["session"]["audio"]["input"]["format"]["rate"] = 24000  # ours: OpenAI has 24 kHz only
    assert SERVER_EVENT.validate_python(event).type == event["type"]
