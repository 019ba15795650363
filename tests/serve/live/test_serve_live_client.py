"""OpenAI's own client, and a bare WebSocket, against the service on a real port."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import openai
import pytest
import websockets
from openai.types.realtime import (
    ConversationItemInputAudioTranscriptionCompletedEvent,
    InputAudioBufferCommittedEvent,
    InputAudioBufferSpeechStartedEvent,
    InputAudioBufferSpeechStoppedEvent,
    RealtimeErrorEvent,
    SessionCreatedEvent,
    SessionUpdatedEvent,
)
from serving import FakeSpeechEngine, InProcessDecoder, build_test_app, spoken

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import samples_of
from askd_ray.serve.engine import ServedModels, load
from askd_ray.serve.listener import Address, listening
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.transcription_service import TranscriptionService
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

LOGPROBS = "item.input_audio_transcription.logprobs"


def serve(app: Any, scenario: Callable[[Address], Awaitable[None]]) -> None:
    async def run() -> None:
        with Address(port=0).reserved() as address:
            async with listening(app, address, shutdown_s=5):
                await scenario(address)

    asyncio.run(asyncio.wait_for(run(), 120))


def pcm16(waveform: Waveform) -> str:
    return base64.b64encode(np.round(32767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes()).decode()


async def speak(connection: Any, recording: Waveform, updates: list[dict[str, Any]], n_turns: int) -> list[Any]:
    """Send a recording in pieces of 0.1 s, and updates between them; return the received events up to the last turn."""
    came: list[Any] = []

    async def send() -> None:
        for n, piece in enumerate(np.array_split(recording, max(1, len(recording) // samples_of(0.1)))):
            if n % 10 == 0 and updates:
                await connection.session.update(session=updates.pop(0))
            await connection.input_audio_buffer.append(audio=pcm16(piece))
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    async for event in connection:
        came.append(event)
        if sum(isinstance(event, ConversationItemInputAudioTranscriptionCompletedEvent) for event in came) == n_turns:
            break
    await sending
    return came


def two_turns(speech: Path) -> tuple[Waveform, list[str]]:
    pause = np.zeros(samples_of(1.2), np.float32)
    clips = spoken(speech, 2)
    return np.concatenate([p for clip, _ in clips for p in (pause, clip, pause)]), [text for _, text in clips]


UPDATES: list[dict[str, Any]] = [
    {
        "type": "transcription",
        "include": [LOGPROBS],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16000},
                "transcription": {"language": "en-US", "delay": "low"},
                "noise_reduction": {"type": "near_field"},
                "turn_detection": {"type": "semantic_vad", "eagerness": "low", "create_response": False},
            }
        },
    },
    {"type": "transcription", "audio": {"input": {"noise_reduction": None}}},
    {"type": "transcription", "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.4}}}},
    {"type": "transcription", "audio": {"input": {"transcription": {"prompt": "IVR prompts."}}}},
]


def assert_two_turns(came: list[Any]) -> list[ConversationItemInputAudioTranscriptionCompletedEvent]:
    kinds = (
        InputAudioBufferSpeechStartedEvent,
        InputAudioBufferSpeechStoppedEvent,
        InputAudioBufferCommittedEvent,
        ConversationItemInputAudioTranscriptionCompletedEvent,
    )
    assert not [event for event in came if isinstance(event, RealtimeErrorEvent)]
    items = [[event.item_id for event in came if isinstance(event, kind)] for kind in kinds]
    assert len(items[0]) == 2 and all(sorted(ids) == sorted(items[0]) for ids in items)
    return [event for event in came if isinstance(event, ConversationItemInputAudioTranscriptionCompletedEvent)]


def test_openai_client_updates_a_session_during_speech(speech: Path):
    recording, _ = two_turns(speech)

    async def scenario(address: Address) -> None:
        client = openai.AsyncOpenAI(base_url=f"{address.url}/v1", api_key="none")
        async with client.realtime.connect(model="student", extra_query={"intent": "transcription"}) as connection:
            assert isinstance(await connection.recv(), SessionCreatedEvent)
            came = await speak(connection, recording, [*UPDATES], 2)
        assert_two_turns(came)
        updated = [event for event in came if isinstance(event, SessionUpdatedEvent)]
        assert len(updated) == len(UPDATES)
        ignored = (updated[0].model_extra or {})["ignored"]
        assert [event["param"].removeprefix("session.audio.input.") for event in ignored] == [
            "transcription.delay",
            "noise_reduction",
            "turn_detection.type",
            "turn_detection.create_response",
        ]
        session = updated[-1].session.to_dict(warnings=False)
        assert session["audio"] == {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16000},
                "transcription": {"model": "student", "language": "en", "prompt": "IVR prompts."},
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.4,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 1000,
                },
                "noise_reduction": None,
            }
        }
        assert session["include"] == [LOGPROBS]

    serve(build_test_app(FakeSpeechEngine()), scenario)


@pytest.mark.slow
def test_turns_around_updates_have_log_probabilities(speech: Path, weights: Path):
    recording, texts = two_turns(speech)
    models = ServedModels()
    models.put(load(weights, "student"))

    async def scenario(address: Address) -> None:
        client = openai.AsyncOpenAI(base_url=f"{address.url}/v1", api_key="none")
        async with client.realtime.connect(model="student", extra_query={"intent": "transcription"}) as connection:
            came = await speak(connection, recording, [*UPDATES], 2)
        transcripts = {event.item_id: event for event in assert_two_turns(came)}
        order = [event.item_id for event in came if isinstance(event, InputAudioBufferCommittedEvent)]
        normalize = normalizer("en")
        hypotheses = [normalize(transcripts[item].transcript) for item in order]
        assert count_word_errors([normalize(text) for text in texts], hypotheses).rate < 0.3
        for event in transcripts.values():
            assert event.logprobs is not None
            assert "".join(event.token for event in event.logprobs).strip() == event.transcript
            assert all(event.logprob <= 0.0 for event in event.logprobs)

    serve(
        build_app(TranscriptionService(models, InProcessDecoder()), RequestLimits(), ServiceMetrics()),
        scenario,
    )


def test_plain_websocket_gets_errors_and_a_close_frame():
    async def scenario(address: Address) -> None:
        url = f"{address.url.replace('http', 'ws')}/v1/realtime?intent=transcription"
        async with websockets.connect(url) as socket:
            await socket.recv()
            await socket.send('{"type": "session.update", "event_id": "\\ud800", "session": {"type": "\\udfff"}}')
            error = json.loads(await socket.recv())["error"]
            assert error["event_id"] == "\ud800" and error["param"] == "session.type"
            await socket.send('{"type": "input_audio_buffer.clear"}')
            assert json.loads(await socket.recv())["type"] == "input_audio_buffer.cleared"
        async with websockets.connect(f"{url}&model=" + quote("\U0001f600" * 100)) as socket:
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008

    serve(build_test_app(FakeSpeechEngine()), scenario)
