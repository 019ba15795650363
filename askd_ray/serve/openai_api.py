"""The OpenAI audio API as a FastAPI app, around a recogniser.

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
from askd_ray.serve.formats import MEDIA_TYPES, body, event
from askd_ray.serve.forms import TranscriptionRequest, transcription, translation
from askd_ray.serve.limits import MAX_FILE_BYTES, KeyCheck, too_large
from askd_ray.serve.live.websocket import add_realtime
from askd_ray.serve.metrics import RequestMetrics, ServiceMetrics, note
from askd_ray.serve.multipart import FormPart, read_parts
from askd_ray.serve.page import add_page
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
"""The request's header that says what to do with a file of which sound is missing: ``accept`` or ``refuse``."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLimits:
    """What the service takes on: requests at once (with those in line), and the seconds that one may take.

    ``upload_s`` are the seconds that a body has before it must keep a pace (askd_ray/serve/uploads.py).
    ``keys`` are the API keys that are let in (none: everyone), ``origins`` the web sites whose pages may ask (CORS).
    """

    requests: int = 64
    request_s: float = 600.0
    upload_s: float = 30.0
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def longest_s(self) -> float:
        """How long a request may take in all: its upload, and then its answer."""
        return 2 * self.request_s


def build_app(
    recogniser: TranscriptionService,
    limits: RequestLimits,
    metrics: ServiceMetrics,
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """Return the app: the routes under ``/v1``, ``/health`` and ``/metrics``; ``lifespan`` runs around it."""
    # No OpenAPI description: FastAPI would describe forms that it does not read.
    app = FastAPI(title="askd-ray", openapi_url=None, lifespan=lifespan)
    app.add_middleware(Admission, max_requests=limits.requests, upload_s=limits.upload_s, max_upload_s=limits.request_s)
    app.add_middleware(KeyCheck, keys=limits.keys)
    if limits.origins:
        app.add_middleware(CORSMiddleware, allow_origins=limits.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(RequestMetrics, metrics=metrics)
    answer_errors(app)
    api = Api(recogniser, limits, metrics)
    app.post("/v1/audio/transcriptions")(api.transcriptions)
    app.post("/v1/audio/translations")(api.translations)
    for path, answer in (
        ("/v1/models", api.models),
        ("/v1/models/{model:path}", api.one_model),
        ("/health", api.health),
        ("/metrics", api.metrics),
    ):
        app.api_route(path, methods=["GET", "HEAD"])(answer)
    add_realtime(app, recogniser)
    add_page(app)
    return app


class Api:
    """The routes."""

    def __init__(self, recogniser: TranscriptionService, limits: RequestLimits, metrics: ServiceMetrics):
        self._recogniser, self._limits, self._metrics = recogniser, limits, metrics
        self._checks = asyncio.Semaphore(1)

    async def transcriptions(self, request: Request) -> Response:
        """Transcribe an audio file."""
        return await self._answer(request, *transcription(await _parts(request), request.query_params))

    async def translations(self, request: Request) -> Response:
        """Translate an audio file to English, where the model has learnt that."""
        return await self._answer(request, *translation(await _parts(request), request.query_params))

    async def models(self) -> dict[str, Any]:
        """List what is served."""
        return {"object": "list", "data": [_card(model) for model in await self._recogniser.ears.models()]}

    async def one_model(self, model: str) -> dict[str, Any]:
        """Describe a model."""
        return _card(await self._model(model))

    async def health(self) -> dict[str, str]:
        """Run a tiny inference, since a server whose inference hangs still answers."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S), self._checks:
                await self._recogniser.ears.check()
        except Exception as error:
            _log.error("health check failed: %s", type(error).__name__)
            raise ApiError(503, "The model does not answer.", code="unhealthy") from None
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """Return the service's numbers, for Prometheus."""
        return Response(self._metrics.exposition(), media_type=self._metrics.media_type)

    async def _answer(self, request: Request, audio: bytes, wanted: TranscriptionRequest) -> Response:
        model = await self._model(wanted.ask.model)
        wanted.check(model)
        if len(audio) > MAX_FILE_BYTES:
            raise too_large()
        ends_at = asyncio.get_running_loop().time() + self._limits.request_s
        if wanted.stream:
            events = self._events(request, audio, wanted, ends_at)
            # What is wrong with the request is an answer, not an event.
            first = await _unless_gone(request, anext(events))
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(_and_then(first, events), media_type="text/event-stream", headers=headers)
        result = await _unless_gone(request, self._whole(request, audio, wanted, ends_at))
        written = body(result, wanted.form, wanted.words, wanted.segments, wanted.ask.decoding.task)
        return Response(written, media_type=MEDIA_TYPES[wanted.form])

    async def _whole(
        self, request: Request, audio: bytes, wanted: TranscriptionRequest, ends_at: float
    ) -> Transcription:
        with self._mistakes_answered(request):
            async with self._loaded(request, audio) as waveform:
                heard = [its async for its in self._listen(request, waveform, wanted, ends_at)]
                language = heard[0].hearing.transcript.language if heard else wanted.ask.language or "en"
                segments = tuple(segment for its in heard for segment in its.segments)
                return Transcription(segments, language, duration_s(waveform))

    async def _events(
        self, request: Request, audio: bytes, wanted: TranscriptionRequest, ends_at: float
    ) -> AsyncGenerator[str]:
        """Yield OpenAI's events; the deltas joined are the text."""
        said: list[str] = []
        with self._mistakes_answered(request):
            async with self._loaded(request, audio) as waveform:
                async for heard in self._listen(request, waveform, wanted, ends_at):
                    delta = "".join(segment.text for segment in heard.segments)
                    delta = delta if said else delta.lstrip()
                    if delta:
                        said.append(delta)
                        yield event("transcript.text.delta", delta=delta)
        # Without usage: OpenAI's event has tokens or none, and what is used here are seconds.
        yield event("transcript.text.done", text="".join(said))

    @contextlib.asynccontextmanager
    async def _loaded(self, request: Request, audio: bytes) -> AsyncGenerator[Waveform]:
        """Hold a file's waveform for as long as the block runs; what is to be said of it goes into headers and log."""
        partial = request.headers.get(PARTIAL_AUDIO, "refuse")
        if partial not in ("accept", "refuse"):
            raise ApiError(400, f"{PARTIAL_AUDIO}: {partial[:20]!r}: accept or refuse is allowed", PARTIAL_AUDIO)
        async with self._recogniser.loaded(audio, partial == "accept") as decoded:
            if remarks := (*decoded.missing, *decoded.notes):
                note(request, audio_notes="; ".join(remarks))
            yield decoded.waveform

    async def _listen(
        self, request: Request, waveform: Waveform, wanted: TranscriptionRequest, ends_at: float
    ) -> AsyncGenerator[TranscribedChunk]:
        """Yield what is said, stretch by stretch, and count it.

        Raises :class:`TimeoutError` when that takes longer than until ``ends_at``.
        """
        note(request, model=wanted.ask.model, audio_s=duration_s(waveform))
        async with contextlib.aclosing(self._recogniser.listen(waveform, wanted.ask)) as stretches:
            while True:
                async with asyncio.timeout_at(ends_at):  # never around a yield: another task may go on from there
                    heard = await anext(stretches, None)
                if heard is None:
                    return
                note(request, version=heard.hearing.version)
                self._metrics.hear(wanted.ask.model, heard)
                yield heard

    @contextlib.contextmanager
    def _mistakes_answered(self, request: Request) -> Generator[None]:
        """Turn what goes wrong in the block into answers."""
        try:
            yield
        except AudioError as error:
            note(request, reason="audio")
            raise ApiError(400, f"The audio cannot be transcribed: {error}", "file") from None
        except UnknownModelError as error:  # it went while the request was in line
            raise _unknown_model(error) from None
        except AskdError as error:
            raise ApiError(400, str(error), "language") from None
        except BusyError:
            raise busy() from None
        except TimeoutError:
            note(request, reason="time")
            message = f"The request took longer than {self._limits.request_s:g} s."
            raise ApiError(503, message, code="timeout") from None
        except ApiError:
            raise
        except Exception as error:
            _log.error("transcription failed", exc_info=error)
            raise server_error() from None

    async def _model(self, name: str) -> Model:
        models = await self._recogniser.ears.models()
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


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Return what ``work`` returns; it is cancelled when the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "The client closed the request.")  # nobody reads it; the log does
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _and_then(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """Yield the first event and the others; a failure on the way is an event too, since the answer has begun."""
    yield first
    try:
        async for its in events:
            yield its
    except ApiError as error:
        yield event("error", **error.body())
    finally:
        await events.aclose()
