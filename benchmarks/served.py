"""Helper of the serve_* benchmarks: services in processes of their own, and bounded load on loopback."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from askd_ray.data.schema import Utterance

_START_S = 180.0


@dataclass(frozen=True)
class Service:
    """A service that answers."""

    url: str
    model: str
    process: psutil.Process

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas on Ray Serve."""
        return [p for p in self._below() if any(f"ServeReplica:askd:{deployment}" in part for part in _words(p))]

    def memory_mb(self) -> float:
        """Return what its replicas hold now."""
        replicas = [*self.replicas("Ingress"), *self.replicas("Engine")]
        return sum(p.memory_info().rss for p in replicas) / 1e6

    def _below(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def askd(model: str, *options: str) -> Iterator[Service]:
    """Run `askd serve` with options; ``model`` is what requests ask for."""
    port = _free_port()
    with _running([sys.executable, "-m", "askd_ray", "serve", "--port", str(port), *options], port, model) as service:
        yield service


@contextmanager
def stock(folder: Path) -> Iterator[Service]:
    """Run benchmarks/stock_server.py with a CTranslate2 folder."""
    port = _free_port()
    server = str(Path(__file__).with_name("stock_server.py"))
    with _running([sys.executable, server, str(folder), str(port)], port, "stock") as service:
        yield service


@contextmanager
def _running(command: list[str], port: int, model: str) -> Iterator[Service]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, env=dict(os.environ))
        url, ends_at = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        try:
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > ends_at:
                    said.seek(0)
                    raise SystemExit(f"the service did not start: {said.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield Service(url, model, psutil.Process(process.pid))
        finally:
            process.terminate()  # what runs in the background of a script does not hear SIGINT
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=30, trust_env=False).json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Answer:
    """One request: which clip, status (0: no answer at all), text, and when it began and ended."""

    clip: int
    status: int
    text: str
    begun: float
    ended: float
    retry_after: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.begun


async def ask(client: httpx.AsyncClient, service: Service, clips: Sequence[Utterance], number: int) -> Answer:
    """Send a clip, once."""
    clip = clips[number]
    form, begun = {"model": service.model, "language": clip.language}, time.perf_counter()
    try:
        response = await client.post(
            f"{service.url}/v1/audio/transcriptions", files={"file": ("clip.wav", clip.audio)}, data=form
        )
    except httpx.HTTPError as error:
        return Answer(number, 0, type(error).__name__, begun, time.perf_counter())
    text = response.json()["text"] if response.status_code == 200 else response.text
    retry = "retry-after" in response.headers
    return Answer(number, response.status_code, text, begun, time.perf_counter(), retry)


async def crowd(
    service: Service,
    clips: Sequence[Utterance],
    n_clients: int,
    numbers: Iterable[int],
    stop: asyncio.Event | None = None,
) -> list[Answer]:
    """Let clients send the clips of these numbers, each its next one when the last is answered; ``stop`` ends it."""
    left, answers = iter(numbers), list[Answer]()
    limits = httpx.Limits(max_connections=n_clients, max_keepalive_connections=n_clients)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:

        async def one() -> None:
            for number in left:
                if stop is not None and stop.is_set():
                    return
                answers.append(await ask(client, service, clips, number))

        await asyncio.gather(*(one() for _ in range(n_clients)))
    return answers


def again_and_again(clips: Sequence[Utterance], n_requests: int | None = None) -> Iterator[int]:
    """Return the clips' numbers, over and over; ``n_requests`` of them, or without end."""
    return itertools.islice(itertools.cycle(range(len(clips))), n_requests)
