"""What the service says of itself: numbers for Prometheus, and a line a request in the log. Never a transcript."""

import json
import logging
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from askd_ray.serve.transcription_service import TranscribedChunk

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ROUTES = (
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/models",
    "/v1/realtime",
    "/health",
    "/metrics",
    "/",
)
AUDIO_NOTES = "x-audio-notes"
"""The answer's header that says what had to be made of the audio."""
_NOTED = "askd"  # where a request's facts lie in its ASGI state
_requests = logging.getLogger("askd_ray.requests")


class ServiceMetrics:
    """The numbers of one process, in a registry of its own."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self._count = Counter("askd_requests", "Requests answered", ["route", "status"], registry=registry)
        self._rejects = Counter("askd_rejects", "Requests refused, by reason", ["reason"], registry=registry)
        self._latency = Histogram(
            "askd_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._audio = Counter("askd_audio_seconds", "Audio transcribed", ["model"], registry=registry)
        self._rtfx = Histogram(
            "askd_rtfx",
            "Audio seconds a second of waiting, by request",
            ["model"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
            registry=registry,
        )
        self._stretches = Counter("askd_stretches", "Stretches decoded", ["model", "version"], registry=registry)
        self._batch = Histogram(
            "askd_batch_size",
            "Stretches in a call of the model",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self._worked = Histogram(
            "askd_model_seconds", "A call of the model", ["model"], buckets=_SECONDS, registry=registry
        )
        self._active = Gauge("askd_requests_active", "Requests being answered", registry=registry)

    def exposition(self) -> bytes:
        """Return the numbers in Prometheus' text format."""
        return generate_latest(self._registry)

    def hear(self, model: str, heard: TranscribedChunk) -> None:
        """Count a stretch."""
        self._stretches.labels(model, heard.hearing.version).inc()
        self._batch.labels(model).observe(heard.hearing.batch)
        self._worked.labels(model).observe(heard.hearing.worked_s)

    def begin(self) -> None:
        """Count a request that is being answered."""
        self._active.inc()

    def end(self, route: str, status: int, seconds: float, facts: MutableMapping[str, Any]) -> None:
        """Count an answer."""
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


def note(request: Request, **facts: Any) -> None:
    """Note facts of a request for the log and the numbers: ``model``, ``version``, ``audio_s``, ``reason``.

    ``audio_notes`` also becomes a header of the answer.
    """
    request.scope[_NOTED].update(facts)


class RequestMetrics:
    """ASGI middleware: an id for each request, in the answer's headers and in the log; its numbers."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        number, facts, begun, status = _request_id(scope), dict[str, Any](), time.monotonic(), 500
        scope[_NOTED] = facts

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                message.setdefault("headers", [])
                headers = {"x-request-id": number}
                if "audio_notes" in facts:
                    headers[AUDIO_NOTES] = facts["audio_notes"]
                written = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *written]
            await send(message)

        self._metrics.begin()
        try:
            await self._app(scope, receive, told)
        finally:
            seconds = time.monotonic() - begun
            path = str(scope["path"])
            route = next((r for r in _ROUTES if path == r or (r != "/" and path.startswith(f"{r}/"))), "other")
            self._metrics.end(route, status, seconds, facts)
            line = {"request": number, "route": route, "status": status, "ms": round(1000 * seconds, 1), **facts}
            _requests.info("%s", json.dumps(line))
        return None


def _request_id(scope: Scope) -> str:
    """Return the client's own id, if it is a harmless one, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if given.replace("-", "").isalnum() and given.isascii() and len(given) <= 64 else uuid.uuid4().hex
