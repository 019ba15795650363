"""The reference server of benchmarks/serve_latency.py: a typical FastAPI server around faster-whisper.

python benchmarks/stock_server.py FOLDER, which prints the URL: its port is any free one.
"""

import socket
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, UploadFile

from askd_ray.models.stock import StockWhisper


def build(folder: str) -> FastAPI:
    """Return a server with one model of stock faster-whisper."""
    app = FastAPI()
    model = StockWhisper(Path(folder))

    @app.post("/v1/audio/transcriptions")
    def transcriptions(
        file: Annotated[UploadFile, File()], model_name: Annotated[str, Form(alias="model")], language: str = Form("en")
    ) -> dict[str, str]:
        """Transcribe a file."""
        return {"text": model.transcribe(file.file.read(), language)}

    @app.get("/health")
    def health() -> dict[str, str]:
        """Answer that the server is ready."""
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    server = uvicorn.Server(uvicorn.Config(build(sys.argv[1]), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening_socket:
        print(f"Serving stock at http://127.0.0.1:{listening_socket.getsockname()[1]}", flush=True)
        server.run(sockets=[listening_socket])
