"""The engines behind a handle of Ray Serve, which is a fake here: test_serve_ray_app.py has the real one."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from serving import FakeSpeechEngine

from askd_ray.serve.engine_sockets import DirectEngines
from askd_ray.serve.ray_engine import EngineReplica, RaySpeechEngine
from askd_ray.serve.transcription_service import Model


class FakeHandle:
    """Counts the calls of ``models``; raises ``error`` in them where it is set."""

    def __init__(self):
        self.n_calls, self.error = 0, cast(Exception | None, None)

    def options(self, **_: Any) -> "FakeHandle":
        return self

    @property
    def models(self) -> "FakeHandle":
        return self

    async def remote(self) -> Sequence[Model]:
        self.n_calls += 1
        if self.error is not None:
            raise self.error
        return await FakeSpeechEngine().models()


def test_no_request_asks_for_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The list is asked for again and again, also after an engine did not answer."""
    monkeypatch.setattr("askd_ray.serve.ray_engine._MODELS_PERIOD_S", 0.02)
    handle = FakeHandle()
    engine = RaySpeechEngine(cast(DeploymentHandle[EngineReplica], handle), DirectEngines(tmp_path, 1), retry_s=1.0)

    async def use() -> None:
        following = asyncio.create_task(engine.follow())
        while handle.n_calls < 3:
            await asyncio.sleep(0.01)
        handle.error = BackPressureError(1, 1)
        while handle.n_calls < 5:
            await asyncio.sleep(0.01)
        handle.error = None
        while handle.n_calls < 8:
            await asyncio.sleep(0.01)
        n_calls = handle.n_calls
        for _ in range(100):
            assert [model.name for model in await engine.models()] == ["student", "other"]
        assert handle.n_calls == n_calls
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    asyncio.run(use())
