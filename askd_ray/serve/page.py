"""The web page at ``/``: transcribes files and the microphone; the browser contacts no other server.

The page can also run the student itself, with the runtime of :mod:`askd_ray.fetch.browser`, which it gets from here.
"""

from functools import partial
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response

from askd_ray.errors import AskdError
from askd_ray.fetch.browser import RUNTIME_FILES
from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.browser_model import runtime_folder

_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html"}
_RUNTIME_TYPES = {"mjs": "text/javascript", "wasm": "application/wasm"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src data:; "
    "media-src blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    # A page that no other site can reach into may share memory among threads; WebAssembly needs that for several.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the routes of the page and its files to the app."""
    folder = resources.files("askd_ray.serve") / "page"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}

    def respond(name: str) -> Response:
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        return Response(files[name], media_type=kind, headers=_HEADERS)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Return the page."""
        return respond("index.html")

    for name in files:
        app.api_route(f"/page/{name}", methods=["GET", "HEAD"])(partial(respond, name))
    for name in RUNTIME_FILES:
        app.api_route(f"/page/runtime/{name}", methods=["GET", "HEAD"])(partial(_runtime_file, name))


def _runtime_file(name: str, request: Request) -> Response:
    """Return a file of the browser's runtime, unless the browser's copy is still the same."""
    try:
        file = runtime_folder() / name
    except AskdError as error:
        raise ApiError(404, f"This page cannot run the model: {error}.", code="no_runtime") from None
    kind = _RUNTIME_TYPES[name.rpartition(".")[2]]
    response = FileResponse(file, media_type=kind, headers=_HEADERS, stat_result=file.stat())
    if request.headers.get("if-none-match") == response.headers["etag"]:
        return Response(status_code=304, headers={**_HEADERS, "ETag": response.headers["etag"]})
    return response
