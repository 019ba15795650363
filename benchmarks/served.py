"""Helper of the serve_* benchmarks: start services as processes, and send a bounded load over loopback."""

import asyncio
import itertools
import os
import re
import signal
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
from askd_ray.errors import AskdError

_START_S = 180.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    model: str
    process: psutil.Process

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas on Ray Serve."""
        return [p for p in self._children() if any(f"ServeReplica:askd:{deployment}" in part for part in _command(p))]

    def memory_mb(self) -> float:
        """Return the memory of its replicas now."""
        replicas = [*self.replicas("Ingress"), *self.replicas("Engine")]
        return sum(p.memory_info().rss for p in replicas) / 1e6

    def _children(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def askd(model: str, *options: str) -> Iterator[Service]:
    """Run `askd serve` with options; ``model`` is the model of the requests."""
    with _running([sys.executable, "-m", "askd_ray", "serve", "--port", "0", *options], model) as service:
        yield service


@contextmanager
def stock(folder: Path) -> Iterator[Service]:
    """Run benchmarks/stock_server.py with a CTranslate2 folder."""
    server = str(Path(__file__).with_name("stock_server.py"))
    with _running([sys.executable, server, str(folder)], "stock") as service:
        yield service


@contextmanager
def _running(command: list[str], model: str) -> Iterator[Service]:
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=dict(os.environ))
        ends_at = time.monotonic() + _START_S
        try:
            while (url := _printed_url(Path(output.name))) is None or not _answers(url):
                if process.poll() is not None or time.monotonic() > ends_at:
                    text = Path(output.name).read_text(encoding="utf-8", errors="replace")
                    if process.poll() == 2:  # a user's mistake: the last line says which
                        raise AskdError(f"the service did not start: {text.rstrip().splitlines()[-1]}")
                    raise SystemExit(f"the service did not start: {text[-2000:]}")
                time.sleep(0.2)
            yield Service(url, model, psutil.Process(process.pid))
        finally:
            process.terminate()  # background processes of a script ignore SIGINT
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


def _printed_url(output: Path) -> str | None:
    """Return the URL that a service has printed, None before that."""
    found = re.search(r"^Serving .*?(http://\S+)", output.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return None if found is None else found[1]


@dataclass(frozen=True)
class Answer:
    """The answer to one request: clip number, status (0: no response), text, start and end time."""

    clip: int
    status: int
    text: str
    begun: float
    ended: float
    retry_after: bool = False

    @property
    def seconds(self) -> float:
        """The latency of the request."""
        return self.ended - self.begun


async def send_clip(client: httpx.AsyncClient, service: Service, clips: Sequence[Utterance], number: int) -> Answer:
    """Send a clip once."""
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


async def send_concurrently(
    service: Service,
    clips: Sequence[Utterance],
    n_clients: int,
    numbers: Iterable[int],
    stop: asyncio.Event | None = None,
) -> list[Answer]:
    """Send clips by number with concurrent clients, each with one request at a time, until ``stop`` is set."""
    remaining, answers = iter(numbers), list[Answer]()
    limits = httpx.Limits(max_connections=n_clients, max_keepalive_connections=n_clients)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:

        async def run_client() -> None:
            for number in remaining:
                if stop is not None and stop.is_set():
                    return
                answers.append(await send_clip(client, service, clips, number))

        await asyncio.gather(*(run_client() for _ in range(n_clients)))
    return answers


def cycle_clips(clips: Sequence[Utterance], n_requests: int | None = None) -> Iterator[int]:
    """Yield the clips' numbers in a cycle; ``n_requests`` of them, or without end."""
    return itertools.islice(itertools.cycle(range(len(clips))), n_requests)
