"""A session with a fake engine: the tests send client events and check server events."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FakeSpeechEngine, InProcessDecoder, spoken

from askd_ray.audio.units import SAMPLES_PER_POSITION, samples_of
from askd_ray.models.transcript import UnitPath
from askd_ray.serve.live import input as live
from askd_ray.serve.live.session import Session
from askd_ray.serve.transcription_service import Model, TranscribeOptions, TranscriptionService

TRANSCRIPTION = "conversation.item.input_audio_transcription."
PCM16 = {"type": "audio/pcm", "rate": 16000}


def append(waveform: np.ndarray) -> dict[str, Any]:
    audio = np.round(32767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes()
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}


def update(**settings: Any) -> dict[str, Any]:
    audio = {"input": {"format": PCM16, **settings}}
    return {"type": "session.update", "session": {"type": "transcription", "audio": audio}}


def converse(
    scenario: Callable[[Session, list[dict[str, Any]]], Awaitable[None]], engine: FakeSpeechEngine | None = None
) -> list[dict[str, Any]]:
    """Run a scenario; return the events that the session sent."""
    events: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    async def run() -> None:
        session = Session(TranscriptionService(engine or FakeSpeechEngine(), InProcessDecoder()), send, "student")
        await session.begin()
        await scenario(session, events)
        session.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    return events


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix(TRANSCRIPTION) for event in events]


@pytest.fixture(scope="module")
def recording(speech: Path) -> np.ndarray:
    """Two turns."""
    pause = np.zeros(samples_of(1.0), np.float32)
    return np.concatenate([p for waveform, _ in spoken(speech, 2) for p in (pause, waveform[: samples_of(2.5)], pause)])


def test_turns_are_detected_and_transcribed(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(transcription={"model": "student", "language": "en"}))
        for piece in np.array_split(recording, 60):
            await session.handle(append(piece))
            await asyncio.sleep(0)
        await until(lambda: kinds(events).count("completed") == 2)

    events = converse(scenario)
    assert kinds(events)[:2] == ["session.created", "session.updated"]
    items = list(dict.fromkeys(event["item_id"] for event in events if "item_id" in event))
    assert len(items) == 2
    for item in items:
        item_events = [event for event in events if event.get("item_id") == item]
        expected = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
        ]
        assert [k for k in kinds(item_events) if k != "delta"] == [*expected, "completed"]
        assert (
            item_events[0]["audio_start_ms"]
            < item_events[-1]["usage"]["seconds"] * 1000 + item_events[0]["audio_start_ms"]
        )
        assert item_events[-1]["transcript"].startswith("Secret")
        deltas = "".join(event["delta"] for event in item_events if event["type"].endswith(".delta"))
        assert item_events[-1]["transcript"].startswith(deltas.split()[0])
    committed = [event for event in events if event["type"] == "input_audio_buffer.committed"]
    assert [event["previous_item_id"] for event in committed] == [None, items[0]]
    assert len({event["event_id"] for event in events}) == len(events)


def test_manual_commit(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle({"type": "input_audio_buffer.commit"})
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.clear"})
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    engine = FakeSpeechEngine()
    events = converse(scenario, engine)
    assert kinds(events)[2:] == [
        "error",
        "input_audio_buffer.cleared",
        "input_audio_buffer.committed",
        "delta",
        "completed",
    ]
    assert events[2]["error"]["code"] == "input_audio_buffer_commit_empty"
    assert [len(waveform) for waveform in engine.received_chunks] == [samples_of(3.0)]


def test_sessions_are_independent(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    first, second = converse(scenario), converse(scenario)
    assert first[-1]["transcript"] == second[-1]["transcript"]
    assert first[-1]["item_id"] != second[-1]["item_id"]


@pytest.mark.parametrize(
    ("event", "param", "message"),
    [
        ({"type": "response.create"}, "type", "'response.create' is not known"),
        ("no event", "type", "an event needs a type"),
        (None, "type", "an event needs a type"),
        ({"type": ["session.update"]}, "type", "an event needs a type"),
        ({"type": "input_audio_buffer.append", "audio": "*"}, "audio", "must be base64"),
        ({"type": "input_audio_buffer.append", "audio": "\ud800"}, "audio", "must be base64"),
        ({"type": "input_audio_buffer.append", "audio": 7}, "audio", "must be base64"),
        ({"type": "input_audio_buffer.append", "audio": None}, "audio", "must be base64"),
        ({"type": "input_audio_buffer.append"}, "audio", "must be base64"),
        ({"type": "session.update"}, "session", "an object is expected"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "'transcription'"),
        ({"type": "session.update", "session": {"audio": 0}}, "session.audio", "an object is expected"),
        (update(turn_detection={"type": "push"}), "session.audio.input.turn_detection.type", "'server_vad'"),
        (update(turn_detection=["server_vad"]), "session.audio.input.turn_detection", "an object is expected"),
        (update(turn_detection={"threshold": 2}), "session.audio.input.turn_detection.threshold", "equal to 1"),
        (update(turn_detection={"eagerness": {}}), "session.audio.input.turn_detection.eagerness", "low, medium"),
        (update(format={"type": "audio/pcm", "rate": 8000}), "session.audio.input.format", "16000 or 24000"),
        (update(format={"type": 5}), "session.audio.input.format.type", "'audio/pcmu'"),
        (update(transcription={"model": "whisper-9"}), "session.audio.input.transcription.model", "'student', 'other'"),
        (update(transcription={"language": "xx"}), "session.audio.input.transcription.language", "none of Whisper's"),
        (update(transcription={"language": "fr"}), "session.audio.input.transcription.language", "does not know 'fr'"),
        (update(transcription={"prompt": "\ud800"}), "session.audio.input.transcription.prompt", "surrogate pair"),
        ({"type": "session.update", "session": {"include": "all"}}, "session.include", "a list is expected"),
    ],
)
def test_invalid_events_are_answered_and_the_session_continues(
    event: Any, param: str, message: str, recording: np.ndarray
):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(event)
        await session.handle(update(turn_detection=None))

    _, error, updated = converse(scenario)
    assert error["type"] == "error" and error["error"].keys() == {"type", "message", "code", "param", "event_id"}
    assert error["error"]["param"] == param
    assert message in error["error"]["message"]
    assert updated["type"] == "session.updated"
    assert updated["session"]["audio"]["input"]["turn_detection"] is None


def test_failed_turn_is_reported_and_the_next_is_transcribed(recording: np.ndarray):
    engine = FakeSpeechEngine()
    engine.error = RuntimeError("/home/me/model.bin")

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "failed" in kinds(events))
        engine.error = None
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario, engine)
    (failed,) = [event for event in events if event["type"].endswith(".failed")]
    assert "model.bin" not in str(failed)


def test_failed_partial_result_is_retried(recording: np.ndarray):
    engine = FakeSpeechEngine()
    transcribe_chunk = engine.transcribe_chunk

    async def fail_first(*args: Any):
        engine.transcribe_chunk = transcribe_chunk
        raise RuntimeError("no engine")

    engine.transcribe_chunk = fail_first

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update())
        for piece in np.array_split(recording[: samples_of(4.0)], 40):
            await session.handle(append(piece))
            await asyncio.sleep(0.001)
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario, engine)
    assert kinds(events).index("delta") < kinds(events).index("input_audio_buffer.speech_stopped")


class PathEngine(FakeSpeechEngine):
    """A model that reads paths: the same two words in every piece."""

    async def models(self) -> list[Model]:
        return [replace(model, reads_paths=True) for model in await super().models()]

    async def read_path(self, piece: np.ndarray, options: TranscribeOptions, owner: str) -> UnitPath:
        n = len(piece) // SAMPLES_PER_POSITION
        return UnitPath(tuple(b" is" if i % 10 < 2 else b" it" if i % 10 == 5 else b"" for i in range(n)))


def test_model_without_a_decoder_reads_pieces_of_a_turn(recording: np.ndarray):
    engine = PathEngine()

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update())
        for piece in np.array_split(recording[: samples_of(4.5)], 45):
            await session.handle(append(piece))
            await asyncio.sleep(0.001)
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario, engine)
    deltas = [event["delta"] for event in events if event["type"].endswith(".delta")]
    assert len(deltas) >= 2 and set("".join(deltas).split()) == {"is", "it"}
    assert not deltas[0].startswith(" ") and all(delta.startswith(" ") for delta in deltas[1:])
    assert len(engine.received_chunks) == 1  # the final text, which contradicts what is shown
    assert events[-1]["transcript"].startswith("Secret")


def test_full_buffer_is_committed_without_turn_detection(recording: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MAX_BUFFER_S", 4.0)
    engine = FakeSpeechEngine()

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        for _ in range(3):
            await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: kinds(events).count("completed") == 4)

    events = converse(scenario, engine)
    assert "error" not in kinds(events)
    committed = [event for event in events if event["type"] == "input_audio_buffer.committed"]
    assert [event["reason"] for event in committed] == [*["max_length"] * (len(committed) - 1), "client"]
    starts, ends = ([event[f"audio_{name}_ms"] for event in committed] for name in ("start", "end"))
    assert starts == [0, *ends[:-1]] and ends[-1] == 9000
    assert sum(event["usage"]["seconds"] for event in events if "usage" in event) == pytest.approx(9.0)


def test_speech_without_pauses_is_committed_in_pieces(speech: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MAX_TURN_S", 2.0)
    clip = spoken(speech)[0][0]
    talk = np.concatenate([clip[samples_of(0.3) : samples_of(1.3)]] * 6)

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection={"silence_duration_ms": 3000}))
        for piece in np.array_split(talk, 60):
            await session.handle(append(piece))
        await until(lambda: kinds(events).count("completed") >= 2)
        assert session._input._buffer.n_samples <= samples_of(2.5)

    events = converse(scenario)
    assert kinds(events).count("input_audio_buffer.committed") >= 2


def test_update_during_speech_keeps_the_turn(recording: np.ndarray):
    engine = FakeSpeechEngine()

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update())
        pieces = np.array_split(recording[: samples_of(4.5)], 45)
        for n, piece in enumerate(pieces):
            if n == 20:  # 2 s, of which somebody spoke for one
                assert kinds(events)[-1] != "input_audio_buffer.committed"
                await session.handle(update(turn_detection={"silence_duration_ms": 400}))
                await session.handle(update(transcription={"language": "EN"}))
            await session.handle(append(piece))
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario, engine)
    order = [kind for kind in kinds(events) if kind not in ("delta", "session.created", "session.updated")]
    turn = ["speech_started", "speech_stopped", "committed"]
    assert order == [*(f"input_audio_buffer.{kind}" for kind in turn), "completed"]
    started, committed = (next(e for e in events if e["type"].endswith(kind)) for kind in ("started", "committed"))
    assert committed["audio_start_ms"] == started["audio_start_ms"] < 1300
    assert events[-1]["usage"]["seconds"] > 2.5
    assert engine.received_options[-1].language == "en"


def test_turn_detection_off_and_on_during_speech_keeps_the_turn(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update())
        for n, piece in enumerate(np.array_split(recording[: samples_of(4.5)], 45)):
            if n == 20:
                await session.handle(update(turn_detection=None))
            if n == 25:
                await session.handle(update(turn_detection={"type": "server_vad"}))
            await session.handle(append(piece))
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario)
    (started,) = (event for event in events if event["type"].endswith("speech_started"))
    (committed,) = (event for event in events if event["type"].endswith("committed"))
    assert committed["item_id"] == started["item_id"]
    assert committed["audio_start_ms"] == started["audio_start_ms"]
    assert events[-1]["usage"]["seconds"] > 2.5


def test_buffered_audio_is_searched_for_turns_when_detection_starts(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording))
        await session.handle(update(turn_detection={}))
        await until(lambda: kinds(events).count("completed") == 2)

    events = converse(scenario)
    assert kinds(events).index("session.updated", 2) < kinds(events).index("input_audio_buffer.speech_started")


def test_open_turn_is_committed_manually_with_the_same_id(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update())
        await session.handle(append(recording[: samples_of(2.0)]))
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording[samples_of(2.0) : samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario)
    started, committed = (next(e for e in events if e["type"].endswith(kind)) for kind in ("started", "committed"))
    assert committed["item_id"] == started["item_id"] == events[-1]["item_id"]
    assert committed["audio_end_ms"] == 3000


def test_update_after_a_commit_does_not_change_the_turn(recording: np.ndarray):
    engine = FakeSpeechEngine()

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None, transcription={"language": "de", "prompt": "first"}))
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await session.handle(update(transcription={"language": "en", "prompt": "second"}))
        await until(lambda: "completed" in kinds(events))

    converse(scenario, engine)
    assert [(options.language, options.decoding.prompt) for options in engine.received_options] == [("de", "first")]


def test_turns_without_transcription_are_only_committed(recording: np.ndarray):
    engine = FakeSpeechEngine()

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None, transcription=None))
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await asyncio.sleep(0)
        assert not engine.received_options
        await session.handle(update(transcription={"language": "de"}))
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario, engine)
    assert events[1]["session"]["audio"]["input"]["transcription"] is None
    _, second = (event["item_id"] for event in events if event["type"] == "input_audio_buffer.committed")
    assert {event["item_id"] for event in events if "content_index" in event} == {second}


def test_token_log_probabilities(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        event = update(turn_detection=None)
        event["session"]["include"] = ["item.input_audio_transcription.logprobs"]
        await session.handle(event)
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(events))

    completed = converse(scenario)[-1]
    assert "".join(item_events["token"] for item_events in completed["logprobs"]).strip() == completed["transcript"]
    assert completed["logprobs"][0] == {"token": " S", "bytes": [32, 83], "logprob": -0.2231}  # of 0.8


def test_minimum_commit_is_100_ms(recording: np.ndarray):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
        audio = base64.b64encode(bytes(2 * 2400)).decode()
        await session.handle({"type": "input_audio_buffer.append", "audio": audio})
        await session.handle({"type": "input_audio_buffer.commit"})

    assert kinds(converse(scenario))[-1] == "input_audio_buffer.committed"


def test_internal_error_is_an_event_and_the_session_continues():
    engine = FakeSpeechEngine()
    models = engine.models

    async def fail() -> Any:
        engine.models = models
        raise OSError("/home/me/engine.sock")

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        engine.models = fail
        await session.handle(update() | {"event_id": "one"})
        await session.handle(update())

    _, error, updated = converse(scenario, engine)
    assert error["error"]["type"] == "server_error" and error["error"]["event_id"] == "one"
    assert "/home" not in str(error)
    assert updated["type"] == "session.updated"


@pytest.mark.parametrize("settings", [{}, {"turn_detection": None}])
def test_pending_turns_are_transcribed_before_shutdown(recording: np.ndarray, settings: dict[str, Any]):
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(**settings))
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.finish(20.0)

    events = converse(scenario)
    assert events[-1]["type"].endswith("completed")
    assert next(event["reason"] for event in events if event["type"].endswith("committed")) == "session_end"


@pytest.mark.parametrize("settings", [{}, {"turn_detection": None}])
def test_clear_after_commit_keeps_the_transcript(recording: np.ndarray, settings: dict[str, Any]):
    """OpenAI's agents SDK ends a recording like this; it ignores the error where the turn has ended already."""

    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        await session.handle(update(**settings))
        await session.handle(append(recording[: samples_of(3.0)]))
        for kind in ("commit", "clear", "commit"):
            await session.handle({"type": f"input_audio_buffer.{kind}", "event_id": kind})
        await until(lambda: "completed" in kinds(events))

    events = converse(scenario)
    (error,) = (event["error"] for event in events if event["type"] == "error")
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "commit")
    committed, completed = (
        next(e for e in events if e["type"].endswith(kind)) for kind in (".committed", ".completed")
    )
    assert committed["item_id"] == completed["item_id"]


def test_beta_protocol_gets_beta_events():
    async def scenario(session: Session, events: list[dict[str, Any]]) -> None:
        detection = {"type": "server_vad", "silence_duration_ms": 700}
        beta = {"input_audio_format": "g711_ulaw", "input_audio_transcription": None, "turn_detection": detection}
        await session.handle({"type": "transcription_session.update", "session": beta})
        await session.handle({"type": "session.update", "session": {}})

    _, beta, now = converse(scenario)
    assert beta["type"] == "transcription_session.updated" and beta["ignored"] == []
    detection = {"type": "server_vad", "threshold": 0.25, "prefix_padding_ms": 300, "silence_duration_ms": 700}
    assert beta["session"] == {
        "id": now["session"]["id"],
        "input_audio_format": "g711_ulaw",
        "input_audio_transcription": None,
        "input_audio_noise_reduction": None,
        "turn_detection": detection,
        "include": [],
    }
    settings = {"transcription": None, "turn_detection": detection, "noise_reduction": None}
    assert now["session"]["audio"] == {"input": {"format": {"type": "audio/pcmu"}, **settings}}
