"""The OpenAI audio API as a FastAPI app around a :class:`TranscriptionService`.

Contract: https://platform.openai.com/docs/api-reference/audio and its OpenAPI description.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from askd_ray.audio.decode import AudioError, Waveform, duration_s
from askd_ray.errors import AskdError
from askd_ray.serve.api_errors import ApiError, answer_errors, busy, server_error
from askd_ray.serve.browser_model import add_browser_model
from askd_ray.serve.formats import MEDIA_TYPES, body, event
from askd_ray.serve.forms import TranscriptionRequest, transcription, translation
from askd_ray.serve.limits import MAX_FILE_BYTES, KeyCheck, too_large
from askd_ray.serve.live.websocket import add_realtime
from askd_ray.serve.metrics import RequestMetrics, ServiceMetrics, note
from askd_ray.serve.multipart import FormPart, read_parts
from askd_ray.serve.page import add_page
from askd_ray.serve.replicas import OneReplica, Replicas
from askd_ray.serve.transcription import Transcription
from askd_ray.serve.transcription_service import (
    BusyError,
    Model,
    TranscribedChunk,
    TranscriptionService,
    UnknownModelError,
)
from askd_ray.serve.uploads import Admission

HEALTH_TIMEOUT_S = 15.0
PARTIAL_AUDIO = "x-partial-audio"
"""The request header for a file with missing audio: ``accept`` transcribes the rest, ``refuse`` is an error."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLimits:
    """The limits of the service: concurrent requests (waiting ones included), and the seconds that one may take.

    All ingress processes together accept ``requests``: each an equal part, and at least one.
    After ``upload_s`` seconds a request body must keep a minimum rate (askd_ray/serve/uploads.py). ``keys`` are the
    accepted API keys (empty: no key is needed), ``origins`` the web sites that may send requests (CORS).
    """

    requests: int = 64
    request_s: float = 600.0
    upload_s: float = 30.0
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def longest_s(self) -> float:
        """The longest total duration of a request: the upload, then the transcription."""
        return 2 * self.request_s


def build_app(
    service: TranscriptionService,
    limits: RequestLimits,
    metrics: ServiceMetrics,
    lifespan: Lifespan[FastAPI] | None = None,
    replicas: Replicas | None = None,
) -> FastAPI:
    """Return the app with the routes ``/v1/...``, ``/health`` and ``/metrics``; ``lifespan`` runs around it.

    ``replicas`` are all ingress processes; None: this one alone.
    """
    ingress = OneReplica(metrics) if replicas is None else replicas
    # No OpenAPI description: the forms are parsed here and not by FastAPI, so its description would be wrong.
    app = FastAPI(title="askd-ray", openapi_url=None, lifespan=lifespan)
    app.add_middleware(
        Admission,
        max_requests=lambda: max(1, limits.requests // ingress.count),
        upload_s=limits.upload_s,
        max_upload_s=limits.request_s,
    )
    app.add_middleware(KeyCheck, keys=limits.keys)
    if limits.origins:
        app.add_middleware(CORSMiddleware, allow_origins=limits.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(RequestMetrics, metrics=metrics)
    answer_errors(app)
    api = Api(service, limits, metrics, ingress)
    app.post("/v1/audio/transcriptions")(api.transcriptions)
    app.post("/v1/audio/translations")(api.translations)
    for path, handler in (
        ("/v1/models", api.models),
        ("/v1/models/{model:path}", api.one_model),
        ("/health", api.health),
        ("/metrics", api.metrics),
    ):
        app.api_route(path, methods=["GET", "HEAD"])(handler)
    add_realtime(app, service)
    add_browser_model(app, service.engine)
    add_page(app)
    return app


class Api:
    """The handlers of the routes."""

    def __init__(
        self, service: TranscriptionService, limits: RequestLimits, metrics: ServiceMetrics, replicas: Replicas
    ):
        self._service, self._limits, self._metrics, self._replicas = service, limits, metrics, replicas
        self._checks = asyncio.Semaphore(1)

    async def transcriptions(self, request: Request) -> Response:
        """Transcribe an audio file."""
        return await self._respond(request, *transcription(await _parts(request), request.query_params))

    async def translations(self, request: Request) -> Response:
        """Translate an audio file to English, where the model can translate."""
        return await self._respond(request, *translation(await _parts(request), request.query_params))

    async def models(self) -> dict[str, Any]:
        """List the served models."""
        return {"object": "list", "data": [_card(model) for model in await self._service.engine.models()]}

    async def one_model(self, model: str) -> dict[str, Any]:
        """Describe a model."""
        return _card(await self._model(model))

    async def health(self) -> dict[str, str]:
        """Run a tiny inference: a server whose inference hangs could still answer other requests."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S), self._checks:
                await self._service.engine.check()
        except Exception as error:
            _log.error("health check failed: %s", type(error).__name__)
            raise ApiError(503, "The model does not answer.", code="unhealthy") from None
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """Return the metrics of all ingress processes for Prometheus."""
        return Response(await self._replicas.exposition(), media_type=self._metrics.media_type)

    async def _respond(self, http: Request, audio: bytes, request: TranscriptionRequest) -> Response:
        model = await self._model(request.options.model)
        request.check(model)
        if len(audio) > MAX_FILE_BYTES:
            raise too_large()
        ends_at = asyncio.get_running_loop().time() + self._limits.request_s
        if request.stream:
            events = self._events(http, audio, request, ends_at)
            # Wait for the first event: an error before it is an HTTP error, not an event.
            first = await _unless_disconnected(http, anext(events))
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(_prepend(first, events), media_type="text/event-stream", headers=headers)
        result = await _unless_disconnected(http, self._transcription(http, audio, request, ends_at))
        task = request.options.decoding.task
        content = body(result, request.response_format, request.words, request.segments, task)
        return Response(content, media_type=MEDIA_TYPES[request.response_format])

    async def _transcription(
        self, http: Request, audio: bytes, request: TranscriptionRequest, ends_at: float
    ) -> Transcription:
        with self._errors_as_responses(http):
            async with self._loaded(http, audio) as waveform:
                chunks = [chunk async for chunk in self._transcribe_chunks(http, waveform, request, ends_at)]
                language = chunks[0].result.transcript.language if chunks else request.options.language or "en"
                segments = tuple(segment for chunk in chunks for segment in chunk.segments)
                return Transcription(segments, language, duration_s(waveform))

    async def _events(
        self, http: Request, audio: bytes, request: TranscriptionRequest, ends_at: float
    ) -> AsyncGenerator[str]:
        """Yield OpenAI's events; the joined deltas are the text."""
        deltas: list[str] = []
        with self._errors_as_responses(http):
            async with self._loaded(http, audio) as waveform:
                async for chunk in self._transcribe_chunks(http, waveform, request, ends_at):
                    delta = "".join(segment.text for segment in chunk.segments)
                    delta = delta if deltas else delta.lstrip()
                    if delta:
                        deltas.append(delta)
                        yield event("transcript.text.delta", delta=delta)
        # No usage: OpenAI's event counts tokens in it, and this service counts seconds.
        yield event("transcript.text.done", text="".join(deltas))

    @contextlib.asynccontextmanager
    async def _loaded(self, http: Request, audio: bytes) -> AsyncGenerator[Waveform]:
        """Hold a file's waveform while the block runs; write notes about the audio to response headers and log."""
        partial = http.headers.get(PARTIAL_AUDIO, "refuse")
        if partial not in ("accept", "refuse"):
            raise ApiError(400, f"{PARTIAL_AUDIO}: {partial[:20]!r}: accept or refuse is allowed", PARTIAL_AUDIO)
        async with self._service.loaded(audio, partial == "accept") as decoded:
            if notes := (*decoded.missing, *decoded.notes):
                note(http, audio_notes="; ".join(notes))
            yield decoded.waveform

    async def _transcribe_chunks(
        self, http: Request, waveform: Waveform, request: TranscriptionRequest, ends_at: float
    ) -> AsyncGenerator[TranscribedChunk]:
        """Yield the transcribed chunks of a waveform, and record metrics of each.

        Raises :class:`TimeoutError` where a chunk is not ready at ``ends_at``.
        """
        note(http, model=request.options.model, audio_s=duration_s(waveform))
        async with contextlib.aclosing(self._service.transcribe(waveform, request.options)) as chunks:
            while True:
                async with asyncio.timeout_at(ends_at):  # never around a yield: another task may resume the generator
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                note(http, version=chunk.result.version)
                self._metrics.count_chunk(request.options.model, chunk)
                yield chunk

    @contextlib.contextmanager
    def _errors_as_responses(self, http: Request) -> Generator[None]:
        """Turn the exceptions of the block into :class:`ApiError`."""
        try:
            yield
        except AudioError as error:
            note(http, reason="audio")
            raise ApiError(400, f"The audio cannot be transcribed: {error}", "file") from None
        except UnknownModelError as error:  # the model was removed while the request waited
            raise _unknown_model(error) from None
        except AskdError as error:
            raise ApiError(400, str(error), "language") from None
        except BusyError:
            raise busy() from None
        except TimeoutError:
            note(http, reason="time")
            message = f"The request took longer than {self._limits.request_s:g} s."
            raise ApiError(503, message, code="timeout") from None
        except ApiError:
            raise
        except Exception as error:
            _log.error("transcription failed", exc_info=error)
            raise server_error() from None

    async def _model(self, name: str) -> Model:
        models = await self._service.engine.models()
        for model in models:
            if model.name == name:
                return model
        raise _unknown_model(UnknownModelError(name, [model.name for model in models]))


async def _parts(request: Request) -> list[FormPart]:
    body = b"".join([chunk async for chunk in request.stream()])
    return read_parts(request.headers.get("content-type", ""), body)


def _unknown_model(error: UnknownModelError) -> ApiError:
    return ApiError(404, str(error), "model", "model_not_found")


def _card(model: Model) -> dict[str, Any]:
    card = {"id": model.name, "object": "model", "created": model.created_s, "owned_by": "askd-ray"}
    return {**card, "version": model.version, "languages": list(model.languages)}


async def _unless_disconnected(http: Request, work: Awaitable[_T]) -> _T:
    """Return the result of ``work``; cancel it when the client disconnects."""

    async def wait_for_disconnect() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, disconnected = asyncio.ensure_future(work), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait([working, disconnected], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "The client closed the request.")  # for the log: no client reads it
        return working.result()
    finally:
        disconnected.cancel()
        working.cancel()


async def _prepend(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """Yield the first event, then the others; a failure becomes an event, since the response has already started."""
    yield first
    try:
        async for message in events:
            yield message
    except ApiError as error:
        yield event("error", **error.body())
    finally:
        await events.aclose()
