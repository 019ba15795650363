import logging
import os
import socket
import zlib
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 server on loopback (moto's): its address, host:port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it reports each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return the URI of a path in this test's own bucket."""
    from pyarrow.fs import FileSystem

    bucket = f"b{zlib.crc32(request.node.nodeid.encode()):08x}"
    options = f"scheme=http&endpoint_override={s3_server}&region=us-east-1"
    FileSystem.from_uri(f"s3://mykey:mysecret@{bucket}/?{options}&allow_bucket_creation=true")[0].create_dir(bucket)

    def uri(path: str) -> str:
        return f"s3://mykey:mysecret@{bucket}/{path}?{options}"

    return uri


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local folder in the place of Hugging Face's hub: only the file system's factory is another one."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from askd_ray import stores

    stand_in = PyFileSystem(FSSpecHandler(DirFileSystem(str(tmp_path / "hub"), LocalFileSystem())))
    monkeypatch.setattr(stores, "hub_file_system", lambda: stand_in)
    stores.file_system.cache_clear()
    yield tmp_path / "hub"
    stores.file_system.cache_clear()


@pytest.fixture
def unused_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
