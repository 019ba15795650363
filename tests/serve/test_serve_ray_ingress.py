"""Several ingress replicas on real Ray Serve: with a port in common, and behind Serve's proxies with autoscaling."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_clients import ROUTE, caption, transcribe
from serving import spoken, wav

from askd_ray.errors import AskdError
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.settings import ServiceArgs

N_REQUESTS = 24


def replica_processes(deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if any(f"ServeReplica:askd:{deployment}" in part for part in p.cmdline())]


def answered(url: str) -> Counter[str]:
    """Return the transcriptions that each ingress replica has answered, by id; each replica knows those of all."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == "askd_requests_total" and sample.labels["route"] == ROUTE:
                counts[sample.labels["replica"]] += int(sample.value)
    return counts


@pytest.fixture(scope="module")
def url(ray_session: None, weights: Path) -> Iterator[str]:
    args = ServiceArgs(models={"tiny.en": str(weights)}, ingresses=2)
    try:
        yield serve_bundles(args, Address(port=0), blocking=False)
    finally:
        stop_serving()


@pytest.mark.slow
def test_replicas_share_a_port_and_each_answers_for_the_metrics_of_all(url: str, speech: Path):
    clips = spoken(speech, 2)
    texts = [transcribe(url, wav(clip)) for clip, _ in clips]
    assert len(set(texts)) == 2
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: transcribe(url, wav(clips[i % 2][0])), range(N_REQUESTS)))
    assert found == texts * (N_REQUESTS // 2)
    counts = [answered(url) for _ in range(6)]  # whichever replica answers
    assert counts == [counts[0]] * 6
    assert sum(counts[0].values()) == N_REQUESTS + 2
    assert len(counts[0]) == 2 and min(counts[0].values()) > 0


@pytest.mark.slow
def test_sessions_of_captions_stay_in_their_replica(url: str, speech: Path):
    waveforms = [waveform for waveform, _ in spoken(speech, 2)]

    async def sessions() -> list[list[str]]:
        return await asyncio.gather(*(caption(url, waveforms) for _ in range(6)))

    expected = [transcribe(url, wav(waveform)) for waveform in waveforms]
    assert asyncio.run(sessions()) == [expected] * 6


@pytest.mark.full
@pytest.mark.slow
def test_other_replica_answers_while_one_is_dead(url: str, speech: Path):
    """The kernel gives no new connection to a process that is gone."""
    clip = wav(spoken(speech)[0][0])
    text = transcribe(url, clip)
    dead, *_ = replica_processes("Ingress")
    dead.kill()
    dead.wait(30)
    assert [transcribe(url, clip) for _ in range(10)] == [text] * 10
    ends_at = time.monotonic() + 60
    while len(answered(url)) < 2:
        assert time.monotonic() < ends_at
        with contextlib.suppress(httpx.TransportError):
            transcribe(url, clip)


def test_autoscaled_ingress_needs_proxies(weights: Path):
    args = ServiceArgs(models={"m": str(weights)}, max_ingresses=2)
    with pytest.raises(AskdError, match=r"max_ingresses = 2: without Serve's proxies .*serve deploy"):
        serve_bundles(args, Address())
