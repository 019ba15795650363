"""The whole service: real Ray Serve, real tiny.en, real speech, clients that people use."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from askd_ray.errors import AskdError
from askd_ray.serve.openai_api import MAX_FILE_BYTES
from askd_ray.serve.ray_app import ServiceArgs, serve_bundle, stop_serving
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

N_CLIPS = 6


@pytest.fixture(scope="module")
def url(ray_session: None, weights: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        yield serve_bundle(weights, port=port, name="tiny.en", blocking=False)
    finally:
        stop_serving()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[tuple[Path, str]]:
    """Prompts that have several words, with what is said in them."""
    lines = (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if len(row["text"].split()) >= 8]
    return [(speech / row["audio"], row["text"]) for row in rows[:N_CLIPS]]


@pytest.mark.slow
def test_the_openai_client_gets_the_words(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    assert [model.id for model in client.models.list()] == ["tiny.en"]
    heard = [client.audio.transcriptions.create(model="tiny.en", file=path).text for path, _ in clips]
    normalize = normalizer("en")
    errors = count_word_errors([normalize(text) for _, text in clips], [normalize(text) for text in heard])
    assert errors.n_reference >= 8 * N_CLIPS
    assert errors.rate <= 0.2
    text = client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], response_format="text")
    assert text.strip() == heard[0]


@pytest.mark.slow
def test_at_full_concurrency_every_text_is_what_it_is_alone(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    def text_of(path: Path) -> str:
        return client.audio.transcriptions.create(model="tiny.en", file=path).text

    alone = [text_of(path) for path, _ in clips]
    assert len(set(alone)) == N_CLIPS
    with ThreadPoolExecutor(2 * N_CLIPS) as threads:
        together = list(threads.map(text_of, [path for path, _ in clips] * 2))
    assert together == alone * 2


@pytest.mark.slow
def test_mistakes_reach_the_client_as_its_own_errors(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    with pytest.raises(openai.BadRequestError, match="unreadable audio"):
        client.audio.transcriptions.create(model="tiny.en", file=("a.wav", b"these are no sounds"))
    with pytest.raises(openai.BadRequestError, match="truncated"):
        client.audio.transcriptions.create(model="tiny.en", file=("a.flac", clips[0][0].read_bytes()[:-500]))
    with pytest.raises(openai.NotFoundError) as unknown:
        client.audio.transcriptions.create(model="whisper-9", file=clips[0][0])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="English-only"):
        client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], language="fr")
    with pytest.raises(openai.BadRequestError, match="'json' or 'text'"):
        client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], response_format="srt")


@pytest.mark.slow
def test_too_large_a_file_is_413_through_the_proxy(url: str):
    answer = httpx.post(
        f"{url}/v1/audio/transcriptions",
        files={"file": bytes(MAX_FILE_BYTES + 1)},
        data={"model": "tiny.en"},
        timeout=60,
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "file"


@pytest.mark.slow
def test_health_and_unknown_paths_are_json_through_the_proxy(url: str):
    assert httpx.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["code"] == "unknown_url"


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(url: str, weights: Path):
    with pytest.raises(AskdError, match="choose another with --port"):
        serve_bundle(weights, port=int(url.rsplit(":", 1)[1]), blocking=False)


def test_a_folder_that_is_no_bundle_fails_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("askd_ray.serve.ray_app.connect", lambda: pytest.fail("a cluster was started"))
    with pytest.raises(AskdError, match="no model in"):
        serve_bundle(tmp_path)


def test_unknown_arguments_of_a_deployment_are_refused():
    with pytest.raises(ValueError, match="bundel"):
        ServiceArgs.model_validate({"bundle": "b", "bundel": "c"})
