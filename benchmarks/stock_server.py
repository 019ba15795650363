"""The reference server of benchmarks/serve_latency.py: a typical FastAPI server around faster-whisper.

python benchmarks/stock_server.py FOLDER PORT
"""

import io
import sys
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, UploadFile
from faster_whisper import WhisperModel


def build(folder: str) -> FastAPI:
    """Return a server with one model: int8, greedy, otherwise faster-whisper's defaults."""
    app = FastAPI()
    model = WhisperModel(folder, device="cpu", compute_type="int8")

    @app.post("/v1/audio/transcriptions")
    def transcriptions(
        file: Annotated[UploadFile, File()], model_name: Annotated[str, Form(alias="model")], language: str = Form("en")
    ) -> dict[str, str]:
        """Transcribe a file."""
        segments, _ = model.transcribe(io.BytesIO(file.file.read()), language=language, beam_size=1)
        return {"text": "".join(segment.text for segment in segments).strip()}

    @app.get("/health")
    def health() -> dict[str, str]:
        """Answer that the server is ready."""
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
