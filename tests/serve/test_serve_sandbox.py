import asyncio
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from serving import wav

from askd_ray.audio.decode import AudioError, decode
from askd_ray.serve.sandbox import Sandbox

TONE = wav(np.sin(np.arange(16_000) / 10).astype(np.float32))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(n=1, time_limit_s=20.0)
    yield sandbox
    sandbox.close()


def decoded(sandbox: Sandbox, audio: bytes, max_s: float = 10.0) -> np.ndarray:
    return asyncio.run(sandbox.decode(audio, max_s))


@pytest.mark.slow
def test_it_decodes_as_we_do(sandbox: Sandbox):
    assert np.array_equal(decoded(sandbox, TONE), decode(TONE))
    with pytest.raises(AudioError, match=r"longer than 0\.5 s"):
        decoded(sandbox, TONE, 0.5)
    with pytest.raises(AudioError, match="unreadable"):
        decoded(sandbox, b"nothing")
    with pytest.raises(AudioError, match="empty"):
        decoded(sandbox, b"")


@pytest.mark.slow
def test_a_decoder_that_dies_costs_one_file(sandbox: Sandbox):
    decoded(sandbox, TONE)
    os.kill(sandbox._idle[0]._process.pid or 0, signal.SIGKILL)
    with pytest.raises(AudioError, match="did not survive"):
        decoded(sandbox, TONE)
    assert len(decoded(sandbox, TONE)) == 16_000


@pytest.mark.slow
def test_a_decoder_that_hangs_costs_one_file(sandbox: Sandbox):
    decoded(sandbox, TONE)
    stopped = sandbox._idle[0]._process.pid or 0
    os.kill(stopped, signal.SIGSTOP)
    sandbox._time_limit_s, begun = 0.3, time.monotonic()
    with pytest.raises(AudioError, match="takes too long"):
        decoded(sandbox, TONE)
    assert time.monotonic() - begun < 10.0
    sandbox._time_limit_s = 20.0
    assert len(decoded(sandbox, TONE)) == 16_000
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
