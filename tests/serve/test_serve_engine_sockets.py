"""Direct calls of engines: real Unix sockets, an engine of the tests."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import ParamSpec

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import FakeSpeechEngine

from askd_ray.audio.decode import Waveform
from askd_ray.audio.vad import VadOptions
from askd_ray.errors import AskdError
from askd_ray.models.transcript import Decoding, Transcript
from askd_ray.serve.engine_sockets import DirectEngines, EngineSocket
from askd_ray.serve.transcription_service import ChunkResult, TranscribeOptions

_P = ParamSpec("_P")
OPTIONS = TranscribeOptions("student", "de", Decoding(prompt="Grüße", confidence=True), VadOptions(0.5))
CHUNK = np.arange(24_000, dtype=np.float32)


def in_loop(test: Callable[_P, Coroutine[None, None, None]]) -> Callable[_P, None]:
    """Run a test in the event loop of Serve's replicas."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def listening(engine: FakeSpeechEngine, folder: Path, name: str = "a") -> AsyncGenerator[None]:
    serving = asyncio.create_task(EngineSocket(engine, folder, name).serve())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


class RepeatingEngine(FakeSpeechEngine):
    """Returns ``result`` for every chunk."""

    result: ChunkResult

    async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
        await super().transcribe_chunk(chunk, options, owner)
        return self.result


finite = st.floats(allow_nan=False)
transcripts = st.builds(
    Transcript,
    st.text(),
    st.lists(st.integers(0, 51_865)).map(tuple),
    finite,
    st.none() | finite,
    st.booleans(),
    st.lists(st.text()).map(tuple),
    st.lists(finite).map(tuple),
    st.lists(finite).map(tuple),
)
decodings = st.builds(
    Decoding, st.integers(1, 5), prompt=st.text(st.characters(exclude_categories=["Cs"])), temperature=st.floats(0, 1)
)


@settings(deadline=None)
@given(st.builds(ChunkResult, transcripts, st.text(), st.integers(1, 99), finite), decodings)
def test_a_direct_call_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, result: ChunkResult, decoding: Decoding
):
    engine, folder = RepeatingEngine(), tmp_path_factory.mktemp("sockets") / "engines"
    engine.result = result
    options = TranscribeOptions("student", None, decoding)

    async def call() -> ChunkResult | None:
        async with listening(engine, folder):
            return await DirectEngines(folder, 1).transcribe_chunk(CHUNK, options, "request")

    assert uvloop.run(call()) == result
    assert engine.received_options == [options]
    assert np.array_equal(engine.received_chunks[0], CHUNK)


@in_loop
async def test_concurrent_calls_get_their_results(tmp_path: Path):
    """Long chunks take several reads; a connection is used again by a later call."""
    engine, direct = FakeSpeechEngine(), DirectEngines(tmp_path / "engines", 99)
    lengths = [1_000 * (1 + i % 7) ** 3 for i in range(28)]
    async with listening(engine, tmp_path / "engines"):
        for _ in range(2):
            calls = (direct.transcribe_chunk(np.zeros(n, np.float32), OPTIONS, "request") for n in lengths)
            results = await asyncio.gather(*calls)
            texts = [None if result is None else result.transcript.text for result in results]
            assert texts == [f"Secret {n} samples." for n in lengths]
        assert len(direct._idle["a"]) == len(lengths)


@in_loop
async def test_only_a_free_engine_is_called(tmp_path: Path):
    busy, free, direct = FakeSpeechEngine(), FakeSpeechEngine(), DirectEngines(tmp_path / "engines", 1)
    busy.gate = asyncio.Event()
    async with listening(busy, tmp_path / "engines"):
        first = asyncio.create_task(direct.transcribe_chunk(CHUNK, OPTIONS, "first"))
        while not busy.received_chunks:
            await asyncio.sleep(0)
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "second") is None
        async with listening(free, tmp_path / "engines", "b"):
            assert await direct.transcribe_chunk(CHUNK, OPTIONS, "third") is not None
        busy.gate.set()
        assert await first is not None
        assert len(busy.received_chunks) == len(free.received_chunks) == 1


@in_loop
async def test_cancelling_the_caller_cancels_the_call(tmp_path: Path):
    class Engine(FakeSpeechEngine):
        cancelled = False

        async def transcribe_chunk(self, chunk: Waveform, options: TranscribeOptions, owner: str) -> ChunkResult:
            try:
                return await super().transcribe_chunk(chunk, options, owner)
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    engine, direct = Engine(), DirectEngines(tmp_path / "engines", 1)
    engine.gate = asyncio.Event()
    async with listening(engine, tmp_path / "engines"):
        call = asyncio.create_task(direct.transcribe_chunk(CHUNK, OPTIONS, "request"))
        while not engine.received_chunks:
            await asyncio.sleep(0)
        call.cancel()
        while not engine.cancelled:
            await asyncio.sleep(0)
        engine.gate.set()
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "next") is not None


@in_loop
async def test_failed_call_is_left_to_serve(tmp_path: Path):
    """Serve's handle raises the error of the repeated call, with its type."""
    engine, direct = FakeSpeechEngine(), DirectEngines(tmp_path / "engines", 1)
    async with listening(engine, tmp_path / "engines"):
        engine.error = AskdError("language 'xx'")
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "request") is None
        engine.error = None
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "request") is not None


@in_loop
async def test_dead_engine_is_forgotten(tmp_path: Path):
    folder, direct = tmp_path / "engines", DirectEngines(tmp_path / "engines", 1)
    assert await direct.transcribe_chunk(CHUNK, OPTIONS, "no engine yet") is None
    async with listening(FakeSpeechEngine(), folder):
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "alive") is not None
    assert (folder / "a").exists()  # the socket of a killed process stays too
    direct = DirectEngines(folder, 1)  # without a connection that outlives the socket
    assert await direct.transcribe_chunk(CHUNK, OPTIONS, "dead") is None
    assert not (folder / "a").exists()
    async with listening(FakeSpeechEngine(), folder):
        assert await direct.transcribe_chunk(CHUNK, OPTIONS, "alive again") is not None


@in_loop
async def test_folder_of_others_is_refused(tmp_path: Path):
    (tmp_path / "engines").mkdir(mode=0o755)
    with pytest.raises(AskdError, match="only this user can open"):
        EngineSocket(FakeSpeechEngine(), tmp_path / "engines", "a")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AskdError, match="only this user can open"):
        EngineSocket(FakeSpeechEngine(), tmp_path / "link", "a")
