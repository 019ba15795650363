"""Our service with a student against a plain FastAPI server with stock faster-whisper and its teacher.

    python benchmarks/serve_latency.py --bundle FOLDER [--teacher NAME] [--data FOLDER] [--clips N] [--quick] [--json]

Both on the same machine, both int8 and greedy, the same clips from encoded audio to text over HTTP; they take turns,
clip by clip with one client and round by round with more. Besides: what HTTP, Ray Serve and the ingress cost above the
same work in one process, and how long after the end of the first words live captions show some of them.

--data takes a folder of Parquet files (Hugging Face convention); without it, the IVR prompts. --json prints one line of
JSON last.
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import websockets
from rich.table import Table
from served import Answer, Service, ask, askd, crowd, stock
from speech_rows import clips

from askd_ray.audio.decode import Waveform, decode
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.files import read_json
from askd_ray.models.engine import GREEDY
from askd_ray.models.load import ctranslate2_folder
from askd_ray.progress import bar, console
from askd_ray.serve.engine import Models, load
from askd_ray.serve.recogniser import Ask, Recogniser

CLIENTS, SHORT_S, PIECE_S = (1, 4, 16), 5.0, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--teacher", help="by default what the bundle was distilled from")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    teacher = options.teacher or read_json(options.bundle / "bundle.json")["teacher"]
    rows = clips(options.data, 8 if options.quick else options.clips)
    clients = (1, 16) if options.quick else CLIENTS
    folder = Path(ctranslate2_folder(teacher))
    with askd("student", "--model", f"student={options.bundle}") as ours, stock(folder) as theirs:
        found = asyncio.run(measure([ours, theirs], rows, clients, 16 if options.quick else 96))
        partials = asyncio.run(first_partials(ours, rows[: 2 if options.quick else 8]))
        overhead = overhead_ms(ours, options.bundle, rows[: 8 if options.quick else 24])
    console.print(table(found, clients, teacher, rows))
    short = [i for i, row in enumerate(rows) if row.duration_s < SHORT_S]
    ours_p50, theirs_p50 = (percentile([a for a in found[1][i] if a.clip in short], 50) for i in (0, 1))
    result = {
        "p50_ratio": round(ours_p50 / theirs_p50, 4),
        "throughput_ratio": round(rtfx(found[16][0], rows) / rtfx(found[16][1], rows), 2),
        "overhead_ms": round(overhead, 2),
        "first_partial_ms": round(median(partials), 1),
        "p50_ms": {str(n): [round(1000 * percentile(its, 50), 1) for its in found[n]] for n in clients},
        "clips": len(rows),
    }
    console.print(
        f"p50 of {len(short)} clips under {SHORT_S:g} s, one client: {result['p50_ratio']:.3f} of the stock server's; "
        f"throughput at 16 clients {result['throughput_ratio']:.1f}x; overhead {overhead:.1f} ms; first partial "
        f"{median(partials):.0f} ms after its words ({min(partials):.0f} to {max(partials):.0f})"
    )
    if options.json:
        print(json.dumps(result))


async def measure(
    services: Sequence[Service], rows: Sequence[Utterance], clients: Sequence[int], n_requests: int
) -> dict[int, list[list[Answer]]]:
    """Return the answers of each service, by the number of clients."""
    found: dict[int, list[list[Answer]]] = {n: [[] for _ in services] for n in clients}
    with bar("requests", len(services) * (len(rows) + n_requests * (len(clients) - 1)), "request") as progress:
        for service in services:
            await crowd(service, rows, 1, 2)
        for number in range(len(rows)):
            for i in (0, 1) if number % 2 else (1, 0):
                found[1][i] += await _alone(services[i], rows, number)
                progress.advance()
        for n in clients[1:]:
            for turn in range(2):
                for i in (0, 1) if turn else (1, 0):
                    found[n][i] += await crowd(services[i], rows, n, n_requests // 2)
                    progress.advance(n_requests // 2)
    failed = [a for its in found.values() for answers in its for a in answers if a.status != 200]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return found


async def _alone(service: Service, rows: Sequence[Utterance], number: int) -> list[Answer]:
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        await client.get(f"{service.url}/v1/models")  # opens the connection
        return [await ask(client, service, rows, number)]


def overhead_ms(service: Service, bundle: Path, rows: Sequence[Utterance]) -> float:
    """Return the median of what a request takes above the same work in this process, in turns."""
    models = Models()
    models.put(load(bundle, "student"))
    recogniser = Recogniser(models, _Here())

    async def here(row: Utterance) -> float:
        begun = time.perf_counter()
        async with recogniser.loaded(row.audio) as waveform:
            async for _ in recogniser.listen(waveform, Ask("student", row.language, GREEDY)):
                pass
        return time.perf_counter() - begun

    async def turns() -> list[float]:
        await here(rows[0])
        found: list[float] = []
        for number, row in enumerate(rows):
            (answer,) = await _alone(service, rows, number)
            time.sleep(0.3)  # OpenMP's threads wait awake for 0.2 s
            inside = await here(row)
            time.sleep(0.3)
            found.append(1000 * (answer.seconds - inside))
        return found

    return median(asyncio.run(turns()))


class _Here:
    """Decodes in this process."""

    async def decode(self, audio: bytes, max_s: float) -> Waveform:
        return decode(audio, max_s)


async def first_partials(service: Service, rows: Sequence[Utterance]) -> list[float]:
    """Return how long after the end of a clip's first word the first delta came, in ms; audio comes in real time."""
    found: list[float] = []
    for row in rows:
        first_word_s = await _first_word_end_s(service, row)
        waveform = np.concatenate([waveform_of(row), np.zeros(16_000, np.float32)])
        audio = np.round(32767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes()
        size = 2 * int(PIECE_S * 16_000)
        pieces = [base64.b64encode(audio[i : i + size]).decode() for i in range(0, len(audio), size)]
        address = f"{service.url.replace('http', 'ws')}/v1/realtime?intent=transcription&model={service.model}"
        async with websockets.connect(address) as socket:
            form = {"type": "audio/pcm", "rate": 16000}
            session = {"type": "transcription", "audio": {"input": {"format": form}}}
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            begun = time.perf_counter()

            speaking = asyncio.create_task(_speak(socket, pieces, begun))
            async for message in socket:
                event = json.loads(message)
                if event["type"].endswith(("transcription.delta", "transcription.completed")):
                    found.append(1000 * (time.perf_counter() - begun - first_word_s))
                    break
            speaking.cancel()
    return found


async def _speak(socket: websockets.ClientConnection, pieces: Sequence[str], begun: float) -> None:
    """Send a piece when the last of its samples would have been said."""
    for n, piece in enumerate(pieces, 1):
        await asyncio.sleep(max(0.0, begun + n * PIECE_S - time.perf_counter()))
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": piece}))


async def _first_word_end_s(service: Service, row: Utterance) -> float:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        form = {"model": service.model, "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        response = await client.post(
            f"{service.url}/v1/audio/transcriptions", files={"file": ("clip.wav", row.audio)}, data=form
        )
        return float(response.raise_for_status().json()["words"][0]["end"])


def percentile(answers: Sequence[Answer], which: float) -> float:
    """Return a percentile of the seconds that answers took."""
    return float(np.percentile([a.seconds for a in answers], which))


def rtfx(answers: Sequence[Answer], rows: Sequence[Utterance]) -> float:
    """Return audio seconds a second; the two rounds of a service lie apart, so each counts by itself."""
    half = len(answers) // 2
    parts = [answers[:half], answers[half:]] if half else [answers]
    wall_s = sum(max(a.ended for a in part) - min(a.begun for a in part) for part in parts)
    return sum(rows[a.clip].duration_s for a in answers) / wall_s


def table(
    found: dict[int, list[list[Answer]]], clients: Sequence[int], teacher: str, rows: Sequence[Utterance]
) -> Table:
    shown = Table(title=f"{len(rows)} clips; student on Ray Serve | {teacher} in faster-whisper behind FastAPI")
    for column in ("clients", "p50 ms", "p95 ms", "p99 ms", "RTFx"):
        shown.add_column(column, justify="right")
    for n in clients:
        cells = [
            " | ".join(f"{1000 * percentile(answers, which):.0f}" for answers in found[n]) for which in (50, 95, 99)
        ]
        speed = " | ".join(f"{rtfx(answers, rows):.1f}" for answers in found[n]) if n > 1 else ""
        shown.add_row(str(n), *cells, speed)
    return shown


if __name__ == "__main__":
    main()
