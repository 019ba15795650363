"""The file of a model for browsers, and what the service says where it has none."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import BundleEngine, build_test_app

from askd_ray.audio.logmel import mel_filters
from askd_ray.files import write_json
from askd_ray.models.whisper_onnx import ONNX_FILES, write_whisper_onnx
from askd_ray.serve.openai_api import RequestLimits
from askd_ray.text.tokens import Tokens

URL = "/v1/browser/student"


@dataclass(frozen=True)
class ModelFile:
    """The parsed file."""

    header: dict[str, Any]
    payload: bytes

    @classmethod
    def parse(cls, content: bytes) -> "ModelFile":
        (length,) = struct.unpack_from("<Q", content)
        return cls(json.loads(content[8 : 8 + length]), content[8 + length :])

    def part(self, name: str) -> bytes:
        first, end = self.header["parts"][name]
        return self.payload[first:end]


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "bundle"
    write_whisper_onnx(tiny_model, folder / "onnx")
    write_json(folder / "bundle.json", {"name": "student", "window": {"silence_s": 0.3, "min_s": 1.0}})
    return folder


@pytest.fixture
def client_of() -> Callable[..., TestClient]:
    def client(bundle: Path | None, *keys: str) -> TestClient:
        return TestClient(build_test_app(BundleEngine(bundle), RequestLimits(keys=keys)))

    return client


def test_file_has_all_that_a_browser_needs(bundle: Path, runtime: Path, client_of: Callable[..., TestClient]):
    answer = client_of(bundle).get(URL)
    assert answer.status_code == 200 and len(answer.content) == int(answer.headers["content-length"])
    file, tokens = ModelFile.parse(answer.content), Tokens(bundle / "onnx")
    assert file.header["window"] == {"silence_s": 0.3, "min_s": 1.0}
    assert file.header["prompts"] == {"en": list(tokens.prompt())} and file.header["end"] == tokens.end
    assert (file.header["n_mels"], file.header["n_heads"], file.header["d_model"]) == (80, 2, 32)
    assert {50358, 50359} <= set(file.header["suppress_tokens"]) and 220 in file.header["begin_suppress_tokens"]
    filters = np.frombuffer(file.part("mel_filters"), "<f4").reshape(80, 201)
    assert np.array_equal(filters, mel_filters(80).numpy())
    for part, name in zip(("encoder", "decoder"), ONNX_FILES["int8"], strict=True):
        assert file.part(part) == (bundle / "onnx" / name).read_bytes()


def test_tokens_of_the_file_write_every_text(bundle: Path, runtime: Path, client_of: Callable[..., TestClient]):
    file, tokens = ModelFile.parse(client_of(bundle).get(URL).content), Tokens(bundle / "onnx")
    ends = [0, *np.frombuffer(file.part("token_ends"), "<u4").tolist()]
    texts = file.part("tokens")
    assert len(ends) == tokens.end + 1
    for text in ("Press 1 now.", "Grüße aus Köln — 你好, мир 🎉", "a\u0301\ufeffb"):
        ids = tokens.encode(text)
        assert b"".join(texts[ends[i] : ends[i + 1]] for i in ids).decode().strip() == tokens.decode(ids)
    ids = random.Random(0).choices(range(tokens.end), k=2000)
    joined = b"".join(texts[ends[i] : ends[i + 1]] for i in ids)
    assert joined.decode(errors="replace").strip() == tokens.decode(ids)


def test_unchanged_file_is_sent_once(bundle: Path, runtime: Path, client_of: Callable[..., TestClient]):
    client = client_of(bundle)
    head = client.head(URL)
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 1_000_000
    again = client.get(URL, headers={"If-None-Match": head.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    write_json(bundle / "bundle.json", {"name": "student", "window": {"silence_s": 0.5, "min_s": 1.0}})
    assert client.get(URL, headers={"If-None-Match": head.headers["etag"]}).status_code == 200
    write_json(bundle / "bundle.json", {"name": "student", "window": {"silence_s": 0.3, "min_s": 1.0}})


def message_of(client: TestClient, url: str, status: int) -> str:
    answer = client.get(url)
    assert answer.status_code == status
    return answer.json()["error"]["message"]


def test_models_without_onnx_say_what_to_run(tmp_path: Path, runtime: Path, client_of: Callable[..., TestClient]):
    write_json(tmp_path / "bundle.json", {"name": "student", "window": {"silence_s": 0.3}})
    message = message_of(client_of(tmp_path), URL, 404)
    assert message == (
        "The model 'student' cannot run in a browser: its bundle has no ONNX files; "
        "`askd export --formats onnx` adds them."
    )
    message = message_of(client_of(None), URL, 404)
    assert "it is no bundle; `askd export --formats onnx` writes one" in message
    assert "only students with a decoder can" in message_of(client_of(None), "/v1/browser/other", 404)
    assert "The model 'nobody' does not exist" in message_of(client_of(None), "/v1/browser/nobody", 404)


def test_missing_runtime_is_named(bundle: Path, cache: Path, client_of: Callable[..., TestClient]):
    client = client_of(bundle)
    for url in (URL, "/page/runtime/ort-wasm-simd-threaded.wasm"):
        message = message_of(client, url, 404)
        assert "no runtime for browsers; `askd fetch browser` fetches it" in message and str(cache) not in message


def test_model_needs_the_key(bundle: Path, runtime: Path, client_of: Callable[..., TestClient]):
    client = client_of(bundle, "secret")
    assert client.get(URL).status_code == 401
    assert client.get(URL, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_runtime_is_sent_once(runtime: Path, client_of: Callable[..., TestClient]):
    client, url = client_of(None), "/page/runtime/ort-wasm-simd-threaded.wasm"
    answer = client.get(url)
    assert answer.content == (runtime / "ort-wasm-simd-threaded.wasm").read_bytes()
    assert answer.headers["content-type"] == "application/wasm"
    assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    for path in ("/", "/page/worker.js", url):
        headers = client.get(path).headers
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert "script-src 'self' 'wasm-unsafe-eval'" in headers["content-security-policy"]
