"""A session around ears that say how long each stretch was; what it is told and what it says are events."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FakeEars, OwnProcess, spoken

from askd_ray.audio.units import samples_of
from askd_ray.serve.live import session as live
from askd_ray.serve.live.session import Session
from askd_ray.serve.recogniser import Recogniser

TRANSCRIPTION = "conversation.item.input_audio_transcription."
PCM16 = {"type": "audio/pcm", "rate": 16000}


def append(waveform: np.ndarray) -> dict[str, Any]:
    audio = np.round(32767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes()
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}


def update(**settings: Any) -> dict[str, Any]:
    audio = {"input": {"format": PCM16, **settings}}
    return {"type": "session.update", "session": {"type": "transcription", "audio": audio}}


def converse(
    scenario: Callable[[Session, list[dict[str, Any]]], Awaitable[None]], ears: FakeEars | None = None
) -> list[dict[str, Any]]:
    """Run a scenario; returns what the session said."""
    said: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        said.append(event)

    async def run() -> None:
        session = Session(Recogniser(ears or FakeEars(), OwnProcess()), send, "student")
        await session.begin()
        await scenario(session, said)
        session.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    return said


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def kinds(said: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix(TRANSCRIPTION) for event in said]


@pytest.fixture(scope="module")
def recording(speech: Path) -> np.ndarray:
    """Two turns."""
    pause = np.zeros(samples_of(1.0), np.float32)
    return np.concatenate([p for waveform, _ in spoken(speech, 2) for p in (pause, waveform[: samples_of(2.5)], pause)])


def test_turns_are_found_and_transcribed(recording: np.ndarray):
    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(transcription={"model": "student", "language": "en"}))
        for piece in np.array_split(recording, 60):
            await session.handle(append(piece))
            await asyncio.sleep(0)
        await until(lambda: kinds(said).count("completed") == 2)

    said = converse(scenario)
    assert kinds(said)[:2] == ["session.created", "session.updated"]
    items = list(dict.fromkeys(event["item_id"] for event in said if "item_id" in event))
    assert len(items) == 2
    for item in items:
        its = [event for event in said if event.get("item_id") == item]
        wanted = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
        ]
        assert [k for k in kinds(its) if k != "delta"] == [*wanted, "completed"]
        assert its[0]["audio_start_ms"] < its[-1]["usage"]["seconds"] * 1000 + its[0]["audio_start_ms"]
        assert its[-1]["transcript"].startswith("Secret")
        deltas = "".join(event["delta"] for event in its if event["type"].endswith(".delta"))
        assert its[-1]["transcript"].startswith(deltas.split()[0])
    committed = [event for event in said if event["type"] == "input_audio_buffer.committed"]
    assert [event["previous_item_id"] for event in committed] == [None, items[0]]
    assert len({event["event_id"] for event in said}) == len(said)


def test_committed_by_hand(recording: np.ndarray):
    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle({"type": "input_audio_buffer.commit"})
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.clear"})
        await session.handle(append(recording[: samples_of(3.0)]))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(said))

    ears = FakeEars()
    said = converse(scenario, ears)
    assert kinds(said)[2:] == [
        "error",
        "input_audio_buffer.cleared",
        "input_audio_buffer.committed",
        "delta",
        "completed",
    ]
    assert said[2]["error"]["code"] == "input_audio_buffer_commit_empty"
    assert [len(waveform) for waveform in ears.heard] == [samples_of(3.0)]


def test_one_session_knows_nothing_of_another(recording: np.ndarray):
    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(said))

    first, second = converse(scenario), converse(scenario)
    assert first[-1]["transcript"] == second[-1]["transcript"]
    assert first[-1]["item_id"] != second[-1]["item_id"]


@pytest.mark.parametrize(
    ("event", "param", "said"),
    [
        ({"type": "response.create"}, "type", "'response.create' is not known"),
        ("no event", "type", "None is not known"),
        (None, "type", "None is not known"),
        ({"type": "input_audio_buffer.append", "audio": "*"}, "audio", "no base64"),
        ({"type": "input_audio_buffer.append", "audio": 7}, "audio", "no base64"),
        ({"type": "session.update"}, "session", "dictionary"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "'transcription'"),
        (update(turn_detection={"type": "semantic_vad"}), "session.audio.input.turn_detection.type", "'server_vad'"),
        (update(format={"type": "audio/pcm", "rate": 8000}), "session.audio.input.format", "16000 or 24000"),
        (update(transcription={"model": "whisper-9"}), "session.audio.input.transcription.model", "does not exist"),
        (update(transcription={"language": "xx"}), "session.audio.input.transcription.language", "not known"),
        (update(transcripton={}), "session.audio.input.transcripton", "not permitted"),
    ],
)
def test_mistakes_are_answered_and_the_session_goes_on(event: Any, param: str, said: str, recording: np.ndarray):
    async def scenario(session: Session, told: list[dict[str, Any]]) -> None:
        await session.handle(event)
        await session.handle(update(turn_detection=None))

    _, error, updated = converse(scenario)
    assert error["type"] == "error" and error["error"].keys() == {"type", "message", "code", "param", "event_id"}
    assert error["error"]["param"] == param
    assert said in error["error"]["message"]
    assert updated["type"] == "session.updated"
    assert updated["session"]["audio"]["input"]["turn_detection"] is None


def test_a_turn_that_fails_says_so_and_the_next_one_is_heard(recording: np.ndarray):
    ears = FakeEars()
    ears.error = RuntimeError("/home/me/model.bin")

    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "failed" in kinds(said))
        ears.error = None
        await session.handle(append(recording))
        await session.handle({"type": "input_audio_buffer.commit"})
        await until(lambda: "completed" in kinds(said))

    said = converse(scenario, ears)
    (failed,) = [event for event in said if event["type"].endswith(".failed")]
    assert "model.bin" not in str(failed)


def test_a_partial_result_that_fails_is_tried_again(recording: np.ndarray):
    ears = FakeEars()
    hear = ears.hear

    async def fail_first(*args: Any):
        ears.hear = hear
        raise RuntimeError("no engine")

    ears.hear = fail_first

    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update())
        for piece in np.array_split(recording[: samples_of(4.0)], 40):
            await session.handle(append(piece))
            await asyncio.sleep(0.001)
        await until(lambda: "completed" in kinds(said))

    said = converse(scenario, ears)
    assert kinds(said).index("delta") < kinds(said).index("input_audio_buffer.speech_stopped")


def test_the_buffer_has_bounds(recording: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MOST_BUFFER_S", 4.0)

    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection=None))
        for _ in range(3):
            await session.handle(append(recording[: samples_of(1.9)]))
        assert len(session._buffer) == 2 * samples_of(1.9)

    said = converse(scenario)
    assert said[-1]["error"]["code"] == "buffer_full"


def test_who_never_pauses_is_committed_in_pieces(speech: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MOST_TURN_S", 2.0)
    clip = spoken(speech)[0][0]
    talk = np.concatenate([clip[samples_of(0.3) : samples_of(1.3)]] * 6)

    async def scenario(session: Session, said: list[dict[str, Any]]) -> None:
        await session.handle(update(turn_detection={"silence_duration_ms": 3000}))
        for piece in np.array_split(talk, 60):
            await session.handle(append(piece))
        await until(lambda: kinds(said).count("completed") >= 2)
        assert len(session._buffer) <= samples_of(2.5)

    said = converse(scenario)
    assert kinds(said).count("input_audio_buffer.committed") >= 2
