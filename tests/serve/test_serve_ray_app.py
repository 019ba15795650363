"""The whole service: real Ray Serve, real tiny.en, real speech, clients that people use."""

import asyncio
import base64
import contextlib
import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil
import pytest
import torch
import torchaudio.functional
from serving import kill_replicas, replicas

from askd_ray.audio.decode import decode
from askd_ray.errors import AskdError
from askd_ray.serve.engine import ServedModels
from askd_ray.serve.limits import MAX_FILE_BYTES
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.ray_engine import EngineReplica
from askd_ray.serve.settings import ServiceArgs
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

N_CLIPS = 6
N_SLOW_S = 35  # longer than Serve's 30 s


def resample_to_24_khz(waveform: np.ndarray) -> np.ndarray:
    return torchaudio.functional.resample(torch.from_numpy(waveform), 16_000, 24_000).numpy()


@pytest.fixture(scope="module")
def url(ray_session: None, weights: Path) -> Iterator[str]:
    try:
        yield serve_bundles(ServiceArgs(models={"tiny.en": str(weights)}), Address(port=0), blocking=False)
    finally:
        stop_serving()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[tuple[Path, str]]:
    """Prompts of several words, each with its transcript."""
    lines = (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if len(row["text"].split()) >= 8]
    return [(speech / row["audio"], row["text"]) for row in rows[:N_CLIPS]]


@pytest.mark.slow
def test_openai_client_transcribes(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    assert [model.id for model in client.models.list()] == ["tiny.en"]
    hypotheses = [client.audio.transcriptions.create(model="tiny.en", file=path).text for path, _ in clips]
    normalize = normalizer("en")
    errors = count_word_errors([normalize(text) for _, text in clips], [normalize(text) for text in hypotheses])
    assert errors.n_reference >= 8 * N_CLIPS
    assert errors.rate <= 0.2
    text = client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], response_format="text")
    assert text.strip() == hypotheses[0]


@pytest.mark.slow
def test_concurrent_texts_equal_single_texts(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    def text_of(path: Path) -> str:
        return client.audio.transcriptions.create(model="tiny.en", file=path).text

    alone = [text_of(path) for path, _ in clips]
    assert len(set(alone)) == N_CLIPS
    with ThreadPoolExecutor(2 * N_CLIPS) as threads:
        together = list(threads.map(text_of, [path for path, _ in clips] * 2))
    assert together == alone * 2


@pytest.mark.slow
def test_chunks_go_directly_to_the_engine(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    client.audio.transcriptions.create(model="tiny.en", file=clips[0][0])
    (engine,) = replicas("Engine")
    sockets = [c.laddr for c in engine.net_connections(kind="unix") if "askd-engines" in str(c.laddr)]
    assert len(sockets) >= 2  # the one that listens, and a connection of the ingress


@pytest.mark.slow
def test_user_errors_raise_the_openai_client_errors(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    with pytest.raises(openai.BadRequestError, match="unreadable audio"):
        client.audio.transcriptions.create(model="tiny.en", file=("a.wav", b"these are no sounds"))
    with pytest.raises(openai.BadRequestError, match="truncated"):
        client.audio.transcriptions.create(model="tiny.en", file=("a.flac", clips[0][0].read_bytes()[:-500]))
    with pytest.raises(openai.NotFoundError) as unknown:
        client.audio.transcriptions.create(model="whisper-9", file=clips[0][0])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="only 'en' is allowed"):
        client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], language="fr")
    with pytest.raises(openai.BadRequestError, match="verbose_json"):
        client.audio.transcriptions.create(model="tiny.en", file=clips[0][0], timestamp_granularities=["word"])


@pytest.mark.slow
def test_response_formats_through_the_openai_client(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    path = clips[0][0]
    create = client.audio.transcriptions.create
    text = create(model="tiny.en", file=path).text
    assert create(model="tiny.en", file=path, response_format="text").strip() == text
    assert create(model="tiny.en", file=path, response_format="srt").startswith("1\n00:00:0")
    assert create(model="tiny.en", file=path, response_format="vtt").startswith("WEBVTT\n\n00:00:0")
    timed = create(
        model="tiny.en", file=path, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert timed.text == text and timed.language == "english"
    assert " ".join(word.word for word in timed.words or []) == text
    assert "".join(segment.text for segment in timed.segments or []).strip() == text
    *deltas, done = create(model="tiny.en", file=path, stream=True)
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == text
    assert done.type == "transcript.text.done" and done.text == text


@pytest.mark.slow
def test_live_captions_through_the_openai_client(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    path, reference = clips[0]
    waveform = resample_to_24_khz(decode(path.read_bytes()))
    audio = np.round(32767 * np.concatenate([waveform, np.zeros(24_000, np.float32)])).astype("<i2").tobytes()
    with client.realtime.connect(model="tiny.en", extra_query={"intent": "transcription"}) as connection:
        hypotheses, deltas = None, ""
        for start in range(0, len(audio), 9_600):
            piece = base64.b64encode(audio[start : start + 9_600]).decode()
            connection.input_audio_buffer.append(audio=piece)
        for event in connection:
            if event.type == "conversation.item.input_audio_transcription.delta":
                deltas += event.delta or ""
            if event.type == "conversation.item.input_audio_transcription.completed":
                hypotheses = (hypotheses or "") + " " + event.transcript
                if len(hypotheses.split()) >= len(reference.split()) - 2:
                    break
    normalize = normalizer("en")
    assert count_word_errors([normalize(reference)], [normalize(hypotheses or "")]).rate < 0.3
    assert deltas


@pytest.mark.full
@pytest.mark.slow
def test_killed_engine_loses_no_request(client: openai.OpenAI, clips: list[tuple[Path, str]]):
    path, once = clips[0][0], client.with_options(max_retries=0)

    def text_of(_: int = 0) -> str:
        return once.audio.transcriptions.create(model="tiny.en", file=path).text

    text = text_of()
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(text_of, i) for i in range(40)]
        while sum(answer.done() for answer in answers) < 4:
            time.sleep(0.01)
        assert kill_replicas("Engine") == 1
        assert [answer.result() for answer in answers] == [text] * 40


@pytest.mark.slow
def test_too_large_a_file_is_413(url: str):
    answer = httpx.post(
        f"{url}/v1/audio/transcriptions",
        files={"file": bytes(MAX_FILE_BYTES + 1)},
        data={"model": "tiny.en"},
        timeout=60,
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "file"


@pytest.mark.slow
def test_health_and_unknown_paths_are_json(url: str):
    healthy = httpx.get(f"{url}/health", headers={"x-request-id": "mine"}, timeout=60)
    assert healthy.json() == {"status": "ok"}
    assert healthy.headers.get_list("x-request-id") == ["mine"]
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["code"] == "unknown_url"


@pytest.mark.slow
def test_port_in_use_is_a_one_line_error(url: str, weights: Path):
    taken = Address(port=int(url.rsplit(":", 1)[1]))
    with pytest.raises(AskdError, match="choose another with --port"):
        serve_bundles(ServiceArgs(models={"m": str(weights)}), taken, blocking=False)


@pytest.mark.slow
def test_killed_ingress_listens_again(url: str, client: openai.OpenAI, clips: list[tuple[Path, str]]):
    assert kill_replicas("Ingress") == 1
    deadline = time.monotonic() + 60
    while not answers(url):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.audio.transcriptions.create(model="tiny.en", file=clips[0][0]).text


def printed_url(process: subprocess.Popen[bytes], output: Path) -> str:
    """Return the URL that `askd serve` prints once it is ready."""
    deadline = time.monotonic() + 180
    while not (found := re.search(r"^Serving .* at (\S+)", output.read_text(), re.MULTILINE)):
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    return found[1]


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=30).status_code == 200
    return False


@pytest.mark.full
@pytest.mark.slow
def test_termination_signal_waits_for_the_request_in_progress(
    weights: Path, clips: list[tuple[Path, str]], tmp_path: Path
):
    """Serve alone waits 30 s for requests in progress; this request takes longer because its client is slow."""
    command = [sys.executable, "-m", "askd_ray", "serve", "--model", f"m={weights}", "--port", "0"]
    output = tmp_path / "output"
    with output.open("w") as out:
        process = subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out)
    try:
        url = printed_url(process, output)
        children = psutil.Process(process.pid).children(recursive=True)
        assert {p.nice() for p in children if p.cmdline()[0].startswith("ray::ServeReplica")} == {0}
        files = {"file": clips[0][0].read_bytes() * 2}
        request = httpx.Request("POST", f"{url}/v1/audio/transcriptions", files=files, data={"model": "m"})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        body = request.read()
        with socket.create_connection((request.url.host, request.url.port or 0)) as connection:
            connection.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\n{head}\r\n".encode() + body[:-10_000])
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            for second in range(N_SLOW_S):
                connection.sendall(body[second - 10_000 : second - 9_999])
                time.sleep(1.0)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
            assert process.poll() is None
            connection.sendall(body[N_SLOW_S - 10_000 :])
            connection.settimeout(60)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200") and len(json.loads(answer.partition(b"\r\n\r\n")[2])["text"]) > 20
        assert process.wait(60) == 0
    finally:
        process.terminate()
        process.wait(60)


def test_invalid_bundle_fails_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("askd_ray.serve.ray_app.connect", lambda: pytest.fail("a cluster was started"))
    with pytest.raises(AskdError, match="no model in"):
        serve_bundles(ServiceArgs(models={"m": str(tmp_path)}), Address())
    with pytest.raises(AskdError, match="no model to serve"):
        serve_bundles(ServiceArgs(), Address())


def test_unknown_arguments_of_a_deployment_are_refused():
    with pytest.raises(ValueError, match="bundel"):
        ServiceArgs.model_validate({"models": {"m": "b"}, "bundel": "c"})


@pytest.mark.parametrize(("idle_s", "checks"), [(1.0, 0), (11.0, 1), (math.inf, 1)])
def test_health_check_runs_the_engine_only_after_an_idle_period(idle_s: float, checks: int):
    class Counted(ServedModels):
        n_checks = 0

        async def check(self) -> None:
            self.n_checks += 1

    replica, models = EngineReplica.__new__(EngineReplica), Counted()  # without models, which tests of the service load
    models.last_chunk_at = time.monotonic() - idle_s
    replica._models = models
    asyncio.run(replica.check_health())
    assert models.n_checks == checks
    asyncio.run(replica.check())
    assert models.n_checks == checks + 1
