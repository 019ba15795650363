"""Prometheus metrics, and one log line per request. Neither contains a transcript."""

import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.transcription_service import TranscribedChunk

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ROUTES = (
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/models",
    "/v1/browser",
    "/v1/realtime",
    "/health",
    "/metrics",
    "/",
)
AUDIO_NOTES = "x-audio-notes"
"""The response header that describes repairs of the audio."""
_FACTS_KEY = "askd"  # of the request's facts in the ASGI scope
_requests = logging.getLogger("askd_ray.requests")


class ServiceMetrics:
    """The metrics of one process, in a separate Prometheus registry."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self._count = Counter("askd_requests", "Requests answered", ["route", "status"], registry=registry)
        self._rejects = Counter("askd_rejects", "Requests rejected, by reason", ["reason"], registry=registry)
        self._latency = Histogram(
            "askd_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._audio = Counter("askd_audio_seconds", "Audio transcribed", ["model"], registry=registry)
        self._rtfx = Histogram(
            "askd_rtfx",
            "Audio seconds per second of latency, by request",
            ["model"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
            registry=registry,
        )
        self._chunks = Counter("askd_stretches", "Chunks decoded", ["model", "version"], registry=registry)
        self._batch = Histogram(
            "askd_batch_size",
            "Chunks in a model call",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self._worked = Histogram(
            "askd_model_seconds", "Duration of a model call", ["model"], buckets=_SECONDS, registry=registry
        )
        self._active = Gauge("askd_requests_active", "Requests in progress", registry=registry)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_chunk(self, model: str, chunk: TranscribedChunk) -> None:
        """Record a transcribed chunk."""
        self._chunks.labels(model, chunk.result.version).inc()
        self._batch.labels(model).observe(chunk.result.batch)
        self._worked.labels(model).observe(chunk.result.worked_s)

    def begin(self) -> None:
        """Record the start of a request."""
        self._active.inc()

    def end(self, route: str, status: int, seconds: float, facts: MutableMapping[str, Any]) -> None:
        """Record the end of a request."""
        self._active.dec()
        self._count.labels(route, status).inc()
        self._latency.labels(route).observe(seconds)
        reasons = {401: "key", 408: "slow", 413: "size", 429: "busy"}
        if status >= 400:
            self._rejects.labels(
                facts.get("reason") or reasons.get(status, "error" if status >= 500 else "request")
            ).inc()
        if "audio_s" in facts:
            self._audio.labels(facts["model"]).inc(facts["audio_s"])
            self._rtfx.labels(facts["model"]).observe(facts["audio_s"] / max(seconds, 1e-6))


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """Return the metrics of several processes, by id, as one exposition with the label ``replica``.

    Their sum without the label would fall when a process ends, which Prometheus takes for a restart.
    """
    families: dict[str, Metric] = {}
    for replica, exposition in sorted(expositions.items()):
        for family in text_string_to_metric_families(exposition.decode()):
            joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            joined.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in family.samples]
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


class _Families(Collector):
    """Metrics that are ready, for a registry."""

    def __init__(self, families: Mapping[str, Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


def note(request: Request, **facts: Any) -> None:
    """Add facts of a request to the log and the metrics: ``model``, ``version``, ``audio_s``, ``reason``.

    ``audio_notes`` also becomes a response header.
    """
    request.scope[_FACTS_KEY].update(facts)


class RequestMetrics:
    """ASGI middleware: give each request an id (response header and log), and record its metrics."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        request_id, facts, begun, status = _request_id(scope), dict[str, Any](), time.monotonic(), 500
        scope[_FACTS_KEY] = facts

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                message.setdefault("headers", [])
                headers = {"x-request-id": request_id}
                if "audio_notes" in facts:
                    headers[AUDIO_NOTES] = facts["audio_notes"]
                encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *encoded]
            await send(message)

        self._metrics.begin()
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - begun
            path = str(scope["path"])
            route = next((r for r in _ROUTES if path == r or (r != "/" and path.startswith(f"{r}/"))), "other")
            self._metrics.end(route, status, seconds, facts)
            line = {"request": request_id, "route": route, "status": status, "ms": round(1000 * seconds, 1), **facts}
            _requests.info("%s", json.dumps(line))
        return None


def _request_id(scope: Scope) -> str:
    """Return the id that the client sent, if it is safe to log, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if given.replace("-", "").isalnum() and given.isascii() and len(given) <= 64 else uuid.uuid4().hex
