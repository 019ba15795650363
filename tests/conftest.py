import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any import of the libraries that read them: no test may reach for a hub, or report its use.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Whisper tiny.en as a CTranslate2 folder, fetched once into the cache."""
    from askd_ray.fetch.weights import fetch_weights

    return fetch_weights("tiny.en")


@pytest.fixture(scope="session")
def speech() -> Path:
    """Real prompts with a manifest.jsonl, fetched once into the cache."""
    from askd_ray.fetch.speech import fetch_speech

    return fetch_speech("ivr")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    from askd_ray.ray_cluster import connect, disconnect

    connect()
    yield
    disconnect()


@pytest.fixture
def unused_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
