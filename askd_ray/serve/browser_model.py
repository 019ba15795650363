"""A student for browsers: one file of its ONNX graphs in int8, its tokens and its mel filters, at ``/v1/browser/ID``.

The file: 8 bytes with the length of the header (little-endian), the header in JSON, and the parts that the header names
with their first and last byte after it. It is made of the bundle's folder while it is sent.
"""

import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from askd_ray.audio.logmel import mel_filters
from askd_ray.errors import AskdError
from askd_ray.fetch.browser import browser_runtime
from askd_ray.files import digest, read_json
from askd_ray.models.description import window_of
from askd_ray.models.onnx_folder import WHISPER_INT8_FILES
from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.transcription_service import Model, SpeechEngine, UnknownModelError
from askd_ray.text.tokens import Tokens

_FORMAT = 1
_FOLDER, _DESCRIPTION = "onnx", "bundle.json"
_ALIGNMENT = 8  # of the parts: JavaScript reads arrays of numbers at multiples of their size only
_BLOCK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrowserModel:
    """The file of a bundle's student for browsers.

    Raises :class:`AskdError` when the bundle has no ONNX folder.
    """

    bundle: Path

    def __post_init__(self) -> None:
        if not all(file.is_file() for file in self._sources):
            raise AskdError("its bundle has no ONNX files; `askd export --formats onnx` adds them")

    @property
    def etag(self) -> str:
        """A tag of the file's content, for the browser's cache."""
        stats = [file.stat() for file in self._sources]
        return f'"{digest([_FORMAT, [(stat.st_size, stat.st_mtime_ns) for stat in stats]])}"'

    def head(self) -> bytes:
        """Return the file up to its graphs."""
        folder = self.bundle / _FOLDER
        config, generation = (read_json(folder / name) for name in ("config.json", "generation_config.json"))
        description, tokens, n_mels = read_json(self._description), Tokens(folder), int(config["num_mel_bins"])
        window, trained = window_of(description), description.get("languages") or tokens.languages
        texts = [tokens.bytes_of(token) for token in range(tokens.end)]
        parts = {
            "mel_filters": mel_filters(n_mels).numpy().astype("<f4").tobytes(),
            "token_ends": np.array([*accumulate(map(len, texts))], "<u4").tobytes(),
            "tokens": b"".join(texts),
        }
        parts["tokens"] += bytes(-len(parts["tokens"]) % _ALIGNMENT)
        sizes = {name: len(part) for name, part in parts.items()}
        sizes |= {name: file.stat().st_size for name, file in zip(("encoder", "decoder"), self._graphs, strict=True)}
        ends = [*accumulate(sizes.values())]
        header = {
            "format": _FORMAT,
            "parts": {name: [end - size, end] for (name, size), end in zip(sizes.items(), ends, strict=True)},
            "window": {"silence_s": window.silence_s, "min_s": window.min_s},
            "n_mels": n_mels,
            "n_heads": int(config["decoder_attention_heads"]),
            "d_model": int(config["d_model"]),
            "prompts": {language: tokens.prompt(language) for language in tokens.languages if language in trained},
            "end": tokens.end,
            "suppress_tokens": generation.get("suppress_tokens") or [],
            "begin_suppress_tokens": generation.get("begin_suppress_tokens") or [],
        }
        encoded = json.dumps(header).encode()
        encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
        return struct.pack("<Q", len(encoded)) + encoded + b"".join(parts.values())

    def blocks(self, head: bytes) -> Iterator[bytes]:
        """Yield the whole file, whose beginning is ``head``."""
        yield head
        for graph in self._graphs:
            with graph.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    yield block

    def size(self, head: bytes) -> int:
        """Return the length of the whole file in bytes."""
        return len(head) + sum(graph.stat().st_size for graph in self._graphs)

    @property
    def _graphs(self) -> tuple[Path, ...]:
        return tuple(self.bundle / _FOLDER / name for name in WHISPER_INT8_FILES)

    @property
    def _description(self) -> Path:
        return self.bundle / _DESCRIPTION

    @property
    def _sources(self) -> tuple[Path, ...]:
        return (*self._graphs, self._description, self.bundle / _FOLDER / "tokenizer.json")


def add_browser_model(app: FastAPI, engine: SpeechEngine) -> None:
    """Add the route of the models for browsers to the app."""

    async def browser_model(request: Request, name: str) -> Response:
        """Return the file of a model, unless the browser's copy is still the same."""
        models = {model.name: model for model in await engine.models()}
        if name not in models:
            raise ApiError(404, str(UnknownModelError(name, list(models))), "model", "model_not_found")
        return await run_in_threadpool(_respond, request, models[name])

    app.api_route("/v1/browser/{name:path}", methods=["GET", "HEAD"])(browser_model)


def _respond(request: Request, served: Model) -> Response:
    try:
        if served.reads_paths:
            raise AskdError("only students with a decoder can")
        if served.bundle is None:
            raise AskdError("it is no bundle; `askd export --formats onnx` writes one")
        model = BrowserModel(served.bundle)
        runtime_folder()
    except AskdError as error:
        message = f"The model {served.name!r} cannot run in a browser: {error}."
        raise ApiError(404, message, "model", "not_for_browsers") from None
    headers = {"ETag": model.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == model.etag:
        return Response(status_code=304, headers=headers)
    head = model.head()
    headers |= {"Content-Length": str(model.size(head))}
    blocks = iter(()) if request.method == "HEAD" else model.blocks(head)
    return StreamingResponse(blocks, media_type="application/octet-stream", headers=headers)


def runtime_folder() -> Path:
    """Return the folder of the browser's runtime.

    Raises :class:`AskdError`, without a path of this machine, when the service cannot send it.
    """
    try:
        return browser_runtime()
    except AskdError as error:
        _log.warning("the browser's runtime cannot be sent: %s", error)
        raise AskdError("the service has no runtime for browsers; `askd fetch browser` fetches it") from None
