"""The web page at ``/``: transcribes files and the microphone; the browser contacts no other server."""

from functools import partial
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html"}
_POLICY = "default-src 'self'; img-src data:; media-src blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'"


def add_page(app: FastAPI) -> None:
    """Add the routes of the page and its files to the app."""
    folder = resources.files("askd_ray.serve") / "page"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}

    def respond(name: str) -> Response:
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(files[name], media_type=kind, headers=headers)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Return the page."""
        return respond("index.html")

    for name in files:
        app.api_route(f"/page/{name}", methods=["GET", "HEAD"])(partial(respond, name))
