"""Helper of the service's tests: clients of a running service, for files and for live captions."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import openai
import torch
import torchaudio.functional

ROUTE = "/v1/audio/transcriptions"


def transcribe(url: str, audio: bytes, model: str = "tiny.en") -> str:
    """Transcribe over a new connection, which the kernel or a proxy gives to a replica."""
    form: dict[str, Any] = {"files": {"file": audio}, "data": {"model": model}}
    return httpx.post(f"{url}{ROUTE}", timeout=60, **form).raise_for_status().json()["text"]


async def caption(
    url: str, waveforms: Sequence[np.ndarray], pause: "asyncio.Event | None" = None, model: str = "tiny.en"
) -> list[str]:
    """Send turns to a session of live captions and return their texts; ``pause`` comes before the last turn."""
    texts: list[str] = []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        async with client.realtime.connect(model=model, extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(
                session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
            )
            for number, waveform in enumerate(waveforms):
                if pause is not None and number == len(waveforms) - 1:
                    await pause.wait()
                samples = torchaudio.functional.resample(torch.from_numpy(waveform), 16_000, 24_000).numpy()
                audio = np.round(32767 * samples).astype("<i2").tobytes()
                for start in range(0, len(audio), 48_000):
                    await connection.input_audio_buffer.append(audio=base64.b64encode(audio[start:][:48_000]).decode())
                await connection.input_audio_buffer.commit()
                async for event in connection:
                    assert event.type != "error", event
                    if event.type == "conversation.item.input_audio_transcription.completed":
                        texts.append(event.transcript)
                        break
    return texts
