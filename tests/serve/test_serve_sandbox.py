import asyncio
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from audio_files import by_ffmpeg, sweep
from serving import wav

from askd_ray.audio.decode import AudioError, decode
from askd_ray.serve.sandbox import Sandbox

TONE = wav(np.sin(np.arange(16_000) / 10).astype(np.float32))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(n=1, time_limit_s=20.0)
    yield sandbox
    sandbox.close()


def waveform(sandbox: Sandbox, audio: bytes, max_s: float = 10.0) -> np.ndarray:
    return asyncio.run(sandbox.decode(audio, max_s)).waveform


@pytest.mark.slow
def test_sandbox_decodes_like_decode(sandbox: Sandbox):
    assert np.array_equal(waveform(sandbox, TONE), decode(TONE))
    with pytest.raises(AudioError, match=r"longer than 0\.5 s"):
        waveform(sandbox, TONE, 0.5)
    with pytest.raises(AudioError, match="unreadable"):
        waveform(sandbox, b"nothing")
    with pytest.raises(AudioError, match="empty"):
        waveform(sandbox, b"")


@pytest.mark.slow
def test_killed_decoder_fails_one_file(sandbox: Sandbox):
    waveform(sandbox, TONE)
    os.kill(sandbox._idle[0]._process.pid or 0, signal.SIGKILL)
    with pytest.raises(AudioError, match="did not survive"):
        waveform(sandbox, TONE)
    assert len(waveform(sandbox, TONE)) == 16_000


@pytest.mark.slow
def test_hanging_decoder_fails_one_file(sandbox: Sandbox):
    waveform(sandbox, TONE)
    stopped = sandbox._idle[0]._process.pid or 0
    os.kill(stopped, signal.SIGSTOP)
    sandbox._time_limit_s = 0.3
    with pytest.raises(AudioError, match="takes too long"):
        waveform(sandbox, TONE)
    sandbox._time_limit_s = 20.0
    assert len(waveform(sandbox, TONE)) == 16_000
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


@pytest.mark.slow
def test_slow_file_does_not_block_others(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """A stopped decoder simulates a file that never ends: the next file gets another process."""
    monkeypatch.setattr("askd_ray.serve.sandbox._QUICK_S", 0.2)
    waveform(sandbox, TONE)
    stopped = sandbox._idle[0]._process.pid or 0
    os.kill(stopped, signal.SIGSTOP)

    async def both() -> tuple[bool, int]:
        slow = asyncio.create_task(sandbox.decode(TONE, 10.0))
        await asyncio.sleep(0.05)
        quick = await sandbox.decode(TONE, 10.0)
        waits = not slow.done()
        os.kill(stopped, signal.SIGCONT)
        return waits, len((await slow).waveform) + len(quick.waveform)

    assert asyncio.run(both()) == (True, 32_000)
    assert len(sandbox._idle) == 1


@pytest.mark.slow
def test_notes_and_partial_audio_are_returned(sandbox: Sandbox):
    cut = by_ffmpeg(sweep(2.0), "ogg", "libopus")[:-200]
    with pytest.raises(AudioError, match=r"^truncated: its last Ogg page is cut$"):
        waveform(sandbox, cut)
    assert asyncio.run(sandbox.decode(cut, 10.0, partial=True)).missing == ("truncated: its last Ogg page is cut",)
    gap = by_ffmpeg(sweep(2.0), "webm", "libopus", gap_s=(1.0, 3.0))
    assert asyncio.run(sandbox.decode(gap, 10.0)).notes[0].startswith("gap: times without sound: 1, 3.00 s")


@pytest.mark.slow
def test_coprime_sample_rates_fit_in_memory(sandbox: Sandbox):
    """A polyphase kernel is huge for coprime rates: 16,001 Hz took more memory than the process may use."""
    for rate_hz in (8_001, 11_127, 16_001, 44_101, 47_999):
        assert len(waveform(sandbox, wav(sweep(5.0, rate_hz), rate_hz))) == 80_000
