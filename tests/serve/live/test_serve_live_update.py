"""The updates that clients send, and their effect on the settings."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import SessionUpdatedEvent

from askd_ray.serve.live.events import EventError
from askd_ray.serve.live.settings import LOGPROBS, AudioFormat, LiveVad, SessionSettings, TranscriptionSettings
from askd_ray.serve.live.update import MAX_IGNORED, Update

INPUT = "session.audio.input"


def of_input(**fields: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": fields}}


# The session objects that clients build, as JSON: openai-agents 0.24 (voice.models.openai_stt), pipecat-ai 1.14
# (services.openai.stt), livekit-plugins-openai 1.8 (stt), and the beta's transcription_session.update.
CLIENTS = {
    "agents": of_input(
        format={"type": "audio/pcm", "rate": 24000},
        transcription={"model": "student", "language": "en", "prompt": "IVR"},
        turn_detection={"type": "semantic_vad"},
    ),
    "agents, more": of_input(
        format={"type": "audio/pcm", "rate": 24000},
        transcription={"model": "student", "languages": ["en"], "prompt": "IVR", "keywords": ["ASKD"]},
        turn_detection={
            "type": "semantic_vad",
            "eagerness": "auto",
            "create_response": False,
            "interrupt_response": True,
        },
        noise_reduction={"type": "far_field"},
    ),
    "pipecat": of_input(
        format={"type": "audio/pcm", "rate": 24000},
        transcription={"model": "student", "language": "en", "prompt": "IVR", "delay": "low"},
        turn_detection=None,
        noise_reduction={"type": "near_field"},
    ),
    "livekit": of_input(
        format={"rate": 24000, "type": "audio/pcm"},
        transcription={"model": "student", "language": "en", "prompt": "IVR"},
        turn_detection={
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 600,
            "silence_duration_ms": 350,
        },
        noise_reduction={"type": "near_field"},
    ),
    "every field of the SDK's types, null": {
        "type": "transcription",
        "include": [LOGPROBS],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": None},
                "noise_reduction": {"type": None, "strength": None},
                "transcription": {
                    "model": "student",
                    "language": "en-US",
                    "languages": None,
                    "prompt": "IVR",
                    "keywords": None,
                    "delay": None,
                },
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": None,
                    "prefix_padding_ms": None,
                    "silence_duration_ms": None,
                    "create_response": None,
                    "interrupt_response": None,
                    "idle_timeout_ms": None,
                },
            }
        },
    },
    "beta": {
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "student", "language": "english", "prompt": "IVR"},
        "input_audio_noise_reduction": {"type": "near_field"},
        "turn_detection": {"type": "semantic_vad", "eagerness": "low", "create_response": True},
        "include": [LOGPROBS],
        "modalities": ["text"],
        "client_secret": {"expires_at": {"anchor": "created_at", "seconds": 600}},
    },
}
DETECTIONS = {
    "agents": LiveVad(silence_duration_ms=500),
    "agents, more": LiveVad(silence_duration_ms=500),
    "pipecat": None,
    "livekit": LiveVad(threshold=0.5, prefix_padding_ms=600, silence_duration_ms=350),
    "every field of the SDK's types, null": LiveVad(),
    "beta": LiveVad(silence_duration_ms=1000),
}
IGNORED = {
    "agents": {"audio.input.turn_detection.type"},
    "agents, more": {
        "audio.input.transcription.keywords",
        "audio.input.turn_detection.type",
        "audio.input.turn_detection.create_response",
        "audio.input.turn_detection.interrupt_response",
        "audio.input.noise_reduction",
    },
    "pipecat": {"audio.input.transcription.delay", "audio.input.noise_reduction"},
    "livekit": {"audio.input.noise_reduction"},
    "every field of the SDK's types, null": {"audio.input.noise_reduction"},
    "beta": {
        "input_audio_noise_reduction",
        "turn_detection.type",
        "turn_detection.create_response",
        "modalities",
        "client_secret",
    },
}


@pytest.mark.parametrize("client", CLIENTS)
def test_client_session_updates_are_accepted(client: str):
    before = SessionSettings(transcription=TranscriptionSettings(model="other"), turn_detection=LiveVad(threshold=0.9))
    update = Update(before if client == "pipecat" else SessionSettings(), CLIENTS[client])
    assert update.settings.transcription == TranscriptionSettings(model="student", language="en", prompt="IVR")
    assert update.settings.turn_detection == DETECTIONS[client]
    assert update.settings.format.rate_hz == 24_000
    assert update.settings.logprobs == ("include" in CLIENTS[client])
    assert {field["param"].removeprefix("session.") for field in update.ignored} == IGNORED[client]
    session = {"id": "sess_1", "object": "realtime.transcription_session", **update.settings.as_session("student")}
    event = {"type": "session.updated", "event_id": "1", "session": session, "ignored": update.ignored}
    assert SessionUpdatedEvent.model_validate(event).session.type == "transcription"


CHANGED = SessionSettings(
    AudioFormat(type="audio/pcm", rate=16000),
    TranscriptionSettings(model="student", language="de", prompt="IVR"),
    LiveVad(threshold=0.6, prefix_padding_ms=100, silence_duration_ms=700),
    True,
)
A, T, D = CHANGED.format, CHANGED.transcription, CHANGED.turn_detection


@pytest.mark.parametrize(
    ("session", "changed"),
    [
        ({}, {}),
        ({"type": None, "audio": None, "include": [LOGPROBS]}, {}),
        ({"audio": {"input": None, "output": None}}, {}),
        (of_input(), {}),
        (of_input(format=None), {}),
        (of_input(format={}), {}),
        (of_input(format={"rate": 24000}), {"format": AudioFormat(type="audio/pcm", rate=24000)}),
        (of_input(format={"rate": None}), {"format": AudioFormat()}),
        (of_input(format={"type": "audio/pcm"}), {}),
        (of_input(format={"type": "audio/pcmu"}), {"format": AudioFormat(type="audio/pcmu")}),
        (of_input(format={"type": "audio/pcma", "rate": 8000}), {"format": AudioFormat(type="audio/pcma", rate=8000)}),
        (of_input(format="g711_ulaw"), {"format": AudioFormat(type="audio/pcmu")}),
        (of_input(transcription={}), {}),
        (of_input(transcription={"prompt": None}), {"transcription": T and T.model_copy(update={"prompt": ""})}),
        (of_input(transcription={"language": ""}), {"transcription": T and T.model_copy(update={"language": None})}),
        (of_input(transcription={"language": None}), {"transcription": T and T.model_copy(update={"language": None})}),
        (
            of_input(transcription={"language": " EN_us"}),
            {"transcription": T and T.model_copy(update={"language": "en"})},
        ),
        (of_input(transcription={"model": "other"}), {"transcription": T and T.model_copy(update={"model": "other"})}),
        (of_input(transcription={"model": ""}), {"transcription": T and T.model_copy(update={"model": None})}),
        (of_input(transcription=None), {"transcription": None}),
        (of_input(turn_detection={}), {}),
        (of_input(turn_detection={"type": "server_vad"}), {}),
        (of_input(turn_detection={"threshold": 0}), {"turn_detection": D and D.model_copy(update={"threshold": 0.0})}),
        (
            of_input(turn_detection={"silence_duration_ms": None}),
            {"turn_detection": D and D.model_copy(update={"silence_duration_ms": 500})},
        ),
        (
            of_input(turn_detection={"type": "semantic_vad", "eagerness": "high"}),
            {"turn_detection": D and D.model_copy(update={"silence_duration_ms": 300})},
        ),
        (of_input(turn_detection=None), {"turn_detection": None}),
        ({"turn_detection": None}, {"turn_detection": None}),
        (of_input(noise_reduction=None), {}),
        ({"include": None}, {"logprobs": False}),
        ({"include": []}, {"logprobs": False}),
    ],
)
def test_update_changes_only_the_named_fields(session: dict[str, Any], changed: dict[str, Any]):
    update = Update(CHANGED, session)
    assert vars(update.settings) == vars(CHANGED) | changed
    assert [field for field in update.ignored if field["param"] not in (f"{INPUT}.turn_detection.type",)] == []


def test_reenabled_settings_have_defaults():
    off = Update(CHANGED, of_input(transcription=None, turn_detection=None)).settings
    on = Update(off, of_input(transcription={"language": "de"}, turn_detection={"threshold": 0.6})).settings
    assert on.transcription == TranscriptionSettings(language="de")
    assert on.turn_detection == LiveVad(threshold=0.6)


@pytest.mark.parametrize("name", ["en", "EN", "en-US", "en_GB", "eng", "english", "English", " en "])
def test_language_name_spellings(name: str):
    settings = Update(SessionSettings(), of_input(transcription={"language": name})).settings.transcription
    assert settings is not None and settings.language == "en"


def test_one_language_is_fixed_and_several_are_detected():
    one = Update(SessionSettings(), of_input(transcription={"languages": ["de"]}))
    assert one.settings.transcription == TranscriptionSettings(language="de") and not one.ignored
    two = Update(SessionSettings(), of_input(transcription={"languages": ["de", "en"]}))
    assert two.settings.transcription == TranscriptionSettings()
    assert [field["param"] for field in two.ignored] == [f"{INPUT}.transcription.languages"]


def test_ignored_fields_are_listed_up_to_a_limit():
    update = Update(SessionSettings(), {f"{'x' * 10_000}{n}": n for n in range(1000)} | {"include": ["a", LOGPROBS]})
    assert len(update.ignored) == MAX_IGNORED
    assert max(len(field["param"]) for field in update.ignored) <= 200
    assert update.settings.logprobs


def test_long_prompt_is_cut_at_the_start():
    settings = Update(
        SessionSettings(), of_input(transcription={"prompt": "a" * 100_000 + "end"})
    ).settings.transcription
    assert settings is not None and settings.prompt.endswith("aend") and len(settings.prompt) < 10_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda field: (
        st.lists(field, max_size=3) | st.dictionaries(st.text(st.characters(codec=None), max_size=5), field, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "format": JSON | st.fixed_dictionaries({}, optional={"type": JSON | st.just("audio/pcmu"), "rate": JSON}),
        "transcription": JSON
        | st.fixed_dictionaries(
            {}, optional={name: JSON for name in ("model", "language", "prompt", "languages", "delay")}
        ),
        "turn_detection": JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "type": JSON | st.just("semantic_vad"),
                **{name: JSON for name in ("threshold", "silence_duration_ms", "eagerness", "create_response")},
            },
        ),
        "noise_reduction": JSON,
        "speed": JSON,
    },
)
SESSIONS = JSON | st.fixed_dictionaries(
    {},
    optional={
        "type": JSON | st.just("transcription"),
        "audio": JSON | st.fixed_dictionaries({"input": JSON | FIELDS}),
        "include": JSON,
    },
)


@settings(deadline=None)
@given(session=SESSIONS)
def test_any_update_is_accepted_or_refused(session: Any):
    try:
        update = Update(CHANGED, session)
    except EventError as error:
        assert error.param is not None and error.param.startswith("session")
        assert error.message.startswith(("session", "language"))
        return
    fields = (session.get("audio") and session["audio"].get("input")) or {}
    for name in ("format", "transcription", "turn_detection"):
        if name not in fields and name not in session:
            assert getattr(update.settings, name) == getattr(CHANGED, name)
