"""The fixtures that several modules use; heavy ones are made once, and no test may change them.

Imports are inside the fixtures: most tests need neither torch nor Ray.
"""

import json
import logging
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tiny_run import Model

    from askd_ray.audio.vad import Vad
    from askd_ray.config.schema import Recipe
    from askd_ray.runs import Run
    from askd_ray.serve.registry import Registry

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
def runtime() -> Path:
    """ONNX Runtime for browsers, fetched once into the cache; without npm and without a copy, the test is skipped."""
    from askd_ray.errors import AskdError
    from askd_ray.fetch.browser import fetch_browser_runtime

    try:
        return fetch_browser_runtime()
    except AskdError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """A node_modules with transformers.js, fetched once into the cache; without npm and a copy, the test is skipped."""
    from transformers_js import fetch_transformers_js

    from askd_ray.errors import AskdError

    try:
        return fetch_transformers_js()
    except AskdError as error:
        if shutil.which("npm") is not None:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_en(weights: Path) -> "Model":
    """Whisper tiny.en in transformers, and its tokens."""
    from askd_ray.models.load import load_whisper

    return load_whisper(str(weights))


@pytest.fixture(scope="session")
def tiny_model(tiny_en: "Model", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: two layers of width 32, random weights, the vocabulary of tiny.en."""
    from tiny_run import write_tiny_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(folder, tiny_en)
    return folder


@pytest.fixture(scope="session")
def ctc_student(tiny_en: "Model", speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CTC student that writes the words of a few clips."""
    from ctc_student import write_ctc_student

    folder = tmp_path_factory.mktemp("ctc") / "student"
    write_ctc_student(folder, tiny_en, speech)
    return folder


@pytest.fixture(scope="session")
def ctc_onnx(ctc_student: Path) -> dict[str, Path]:
    """The CTC student's ONNX folders, by quantization."""
    from askd_ray.models.ctc_onnx import Quantization, write_onnx

    quantizations: tuple[Quantization, ...] = ("float32", "int8")
    for quantization in quantizations:
        write_onnx(ctc_student, ctc_student.with_name(quantization), quantization)
    return {quantization: ctc_student.with_name(quantization) for quantization in quantizations}


@pytest.fixture(scope="session")
def ctc_run(ctc_student: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run whose student is the CTC student, exported; its shards are of the clips that the student knows."""
    from small_run import small_run

    from askd_ray.bundles.bundle import export

    run = small_run(tmp_path_factory.mktemp("runs"), speech, data={"sources": [{"path": "cache:ivr"}]})
    shutil.copytree(ctc_student, run.student)
    run.finish("distill", "distilled", {"dev_wer": 0.1}, run.begin("distill"))
    export(run.recipe)
    return run


@pytest.fixture(scope="session")
def labelled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> "Recipe":
    """A recipe whose shards and labels are there: 14 train clips in two shards, 3 dev clips."""
    from tiny_run import write_labelled_run

    return write_labelled_run(tmp_path_factory.mktemp("runs"), tiny_model)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a language model: two layers of width 64, random weights."""
    from tiny_llm import write_tiny_llm

    folder = tmp_path_factory.mktemp("llm") / "model"
    write_tiny_llm(folder)
    return folder


@pytest.fixture(scope="session")
def labelled_llm(labelled: "Recipe", tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> "Recipe":
    """The recipe of an LLM student whose shards and labels are there; the shards are those of ``labelled``."""
    from tiny_llm import write_llm_run

    return write_llm_run(tmp_path_factory.mktemp("runs"), labelled, tiny_llm)


@pytest.fixture
def copy_of_run(labelled: "Recipe", tmp_path: Path) -> "Callable[[], Recipe]":
    """Return a copy of the labelled run that a test may change."""
    from askd_ray.runs import Run

    def copy() -> "Recipe":
        shutil.copytree(Run(labelled).path, tmp_path / "runs" / labelled.name)
        return labelled.model_copy(update={"runs_root": str(tmp_path / "runs")})

    return copy


@pytest.fixture
def searched(copy_of_run: "Callable[[], Recipe]") -> "Callable[..., Recipe]":
    """Return the labelled run with a search: :func:`tiny_run.with_search`."""
    from tiny_run import with_search

    def make(tune: dict[str, Any], **sections: Any) -> "Recipe":
        return with_search(copy_of_run(), tune, **sections)

    return make


@pytest.fixture(scope="session")
def vad() -> "Vad":
    """Silero's speech detection."""
    from askd_ray.audio.vad import Vad

    return Vad()


@pytest.fixture
def registry(tmp_path: Path) -> "Registry":
    """An empty registry of models."""
    from askd_ray.serve.registry import Registry

    return Registry(tmp_path / "registry")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder as the cache of downloads."""
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with a manifest.jsonl: a dict a row; ``bytes`` is its audio (default: half a second of noise)."""
    from audio_files import noise_file

    def write(rows: Sequence[Mapping[str, Any]], name: str = "clips") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines: list[str] = []
        for number, given in enumerate(rows):
            row = {"audio": f"{number}.wav", "text": f"text {number}", **given}
            audio = row.pop("bytes", noise_file(seed=number))
            if audio is not None:
                (folder / row["audio"]).write_bytes(audio)
            lines.append(json.dumps(row) + "\n")
        (folder / "manifest.jsonl").write_text("".join(lines))
        return folder

    return write


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster for all tests that need one; the stages find it, and so leave it running."""
    import ray

    from askd_ray import ray_cluster

    ray_cluster.connect()
    ray_cluster._connected_node = None
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def dashboard(ray_session: None) -> str:
    """The URL of the session cluster's dashboard."""
    import ray

    return f"http://{ray.init(ignore_reinit_error=True).dashboard_url}"


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
def refusing_port() -> Iterator[int]:
    """A port on loopback that refuses connections: it is bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
