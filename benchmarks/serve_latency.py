"""Compare `askd serve` with a student to a plain FastAPI server with stock faster-whisper and the teacher.

    python benchmarks/serve_latency.py --bundle FOLDER [--teacher NAME] [--data FOLDER] [--clips N] [--quick] [--json]

Both run on the same machine, int8 and greedy, with the same clips, from encoded audio to text over HTTP. They take
turns of some clips. A turn begins with a pause and two clips that are not measured, because the idle threads of the
other service spin for a while and use the cores. Also measured: the overhead of HTTP, Ray Serve and the ingress over
the same work in one process, and the delay from the end of the first word to its live caption.

--data is a folder of Parquet files (Hugging Face convention); the default is the IVR prompts. --json prints one line
of JSON at the end.
"""

import argparse
import asyncio
import base64
import http.client
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import one_line_errors
import websockets
from rich.table import Table
from served import Answer, Service, askd, cycle_clips, send_concurrently, stock
from speech_rows import clips

from askd_ray.audio.decode import DecodedAudio, read_audio
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.files import read_json
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.transcript import GREEDY
from askd_ray.progress import bar, console
from askd_ray.serve.engine import ServedModels, allocate_hardware, load
from askd_ray.serve.transcription_service import TranscribeOptions, TranscriptionService
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

Turns = list[list[Answer]]
"""The answers of a service, grouped by turn."""

CLIENTS, SHORT_S, PIECE_S = (1, 4, 16), 5.0, 0.05
TURN_CLIPS, PAUSE_S = 8, 0.3  # OpenMP's idle threads spin for 0.2 s
SPOKEN_S = 1.5  # a longer clip has several words: live captions show one before its end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--teacher", help="default: the model that the bundle was distilled from")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    teacher = options.teacher or read_json(options.bundle / "bundle.json")["teacher"]
    rows = clips(options.data, 6 if options.quick else options.clips)
    clients = (1, 16) if options.quick else CLIENTS
    folder = Path(ctranslate2_folder(teacher))
    with askd("student", "--model", f"student={options.bundle}") as student, stock(folder) as stock_server:
        answers = asyncio.run(measure([student, stock_server], rows, clients, len(rows) * (3 if options.quick else 2)))
        console.print(table(answers, clients, teacher, rows))
        spoken = [row for row in rows if SPOKEN_S < row.duration_s < SHORT_S]
        partials = asyncio.run(first_partials(student, spoken[: 1 if options.quick else 8]))
        in_pieces = asyncio.run(streamed(student, rows))
        overhead = overhead_ms(student, options.bundle, rows[: 4 if options.quick else 24])
    short = [i for i, row in enumerate(rows) if row.duration_s < SHORT_S]
    student_p50_s, stock_p50_s = (percentile([a for a in flat(answers[1][i]) if a.clip in short], 50) for i in (0, 1))
    alone, concurrent = flat(answers[1][0]), flat(answers[16][0])
    texts = {a.clip: a.text for a in alone}
    result = {
        "p50_ratio": round(student_p50_s / stock_p50_s, 4),
        "throughput_ratio": round(rtfx(answers[16][0], rows) / rtfx(answers[16][1], rows), 2),
        "overhead_ms": round(overhead, 2),
        "first_partial_ms": round(median(partials), 1),
        "p50_ms": {str(n): [round(1000 * percentile(flat(turns), 50), 1) for turns in answers[n]] for n in clients},
        "wer": {"1": round(wer(alone, rows), 2), "16": round(wer(concurrent, rows), 2)},
        "differ": {
            "16 clients": sum(a.text != texts[a.clip] for a in concurrent),
            "streamed": sum(text != texts[i] for i, text in enumerate(in_pieces)),
        },
        "clips": len(rows),
    }
    console.print(
        f"p50 of {len(short)} clips under {SHORT_S:g} s, one client: {result['p50_ratio']:.3f} of the stock server; "
        f"throughput at 16 clients {result['throughput_ratio']:.1f}x; overhead {overhead:.1f} ms; first partial "
        f"{median(partials):.0f} ms after its words ({min(partials):.0f} to {max(partials):.0f}); WER at 1 and at 16 "
        f"clients {result['wer']['1']} and {result['wer']['16']} %, different texts {result['differ']}"
    )
    if options.json:
        print(json.dumps(result))


async def measure(
    services: Sequence[Service], rows: Sequence[Utterance], clients: Sequence[int], n_requests: int
) -> dict[int, list[Turns]]:
    """Return the turns of each service by the number of clients."""
    answers: dict[int, list[Turns]] = {n: [[] for _ in services] for n in clients}
    with bar("requests", len(services) * (len(rows) + n_requests * (len(clients) - 1)), "request") as progress:
        for n in clients:
            numbers = list(cycle_clips(rows, len(rows) if n == 1 else n_requests))
            size = TURN_CLIPS if n == 1 else max(n, -(-n_requests // 2))
            for turn, start in enumerate(range(0, len(numbers), size)):
                for i in (0, 1) if turn % 2 else (1, 0):
                    await asyncio.sleep(PAUSE_S)
                    await send_concurrently(services[i], rows, n, cycle_clips(rows, 2))
                    answers[n][i].append(await send_concurrently(services[i], rows, n, numbers[start : start + size]))
                    progress.advance(len(answers[n][i][-1]))
    failed = [a for services in answers.values() for turns in services for a in flat(turns) if a.status != 200]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return answers


def flat(turns: Turns) -> list[Answer]:
    """Return the answers of all turns."""
    return [answer for turn in turns for answer in turn]


async def streamed(service: Service, rows: Sequence[Utterance]) -> list[str]:
    """Return the text of each clip, joined from the deltas of a stream; ``max(CLIENTS)`` clips run at a time."""
    concurrency = asyncio.Semaphore(CLIENTS[-1])
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:

        async def text(row: Utterance) -> str:
            form = {"model": service.model, "language": row.language, "stream": "true"}
            async with concurrency:
                address = f"{service.url}/v1/audio/transcriptions"
                answer = await client.post(address, files={"file": ("clip.wav", row.audio)}, data=form)
            lines = answer.raise_for_status().text.splitlines()
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            return "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")

        return list(await asyncio.gather(*map(text, rows)))


def wer(answers: Sequence[Answer], rows: Sequence[Utterance]) -> float:
    """Return the word error rate of the answers, in percent."""
    normalize = normalizer("en")
    references = [normalize(rows[a.clip].text) for a in answers]
    return 100 * count_word_errors(references, [normalize(a.text) for a in answers]).rate


def overhead_ms(service: Service, bundle: Path, rows: Sequence[Utterance]) -> float:
    """Return the median difference of a request to the same work in this process; the two alternate.

    Requests are built before and sent by http.client, so that the time of an HTTP client library does not count.
    """
    hardware = allocate_hardware(bundle)
    models = ServedModels(hardware)
    models.put(load(bundle, "student", hardware))
    local_service = TranscriptionService(models, _InProcessDecoder())
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"))

    def served_s(row: Utterance) -> float:
        form = {"model": service.model, "language": row.language}
        http_request = httpx.Request("POST", service.url, files={"file": ("clip.wav", row.audio)}, data=form)
        body, headers = http_request.read(), dict(http_request.headers)
        begun = time.perf_counter()
        connection.request("POST", "/v1/audio/transcriptions", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"a request failed: {answer.status}")
        return time.perf_counter() - begun

    async def local_s(row: Utterance) -> float:
        begun = time.perf_counter()
        async with local_service.loaded(row.audio) as decoded:
            async for _ in local_service.transcribe(
                decoded.waveform, TranscribeOptions("student", row.language, GREEDY)
            ):
                pass
        return time.perf_counter() - begun

    async def differences_ms() -> list[float]:
        await local_s(rows[0])
        served_s(rows[0])
        return [1000 * (served_s(row) - await local_s(row)) for row in rows for _ in range(3)]

    return median(asyncio.run(differences_ms()))


class _InProcessDecoder:
    """Decodes audio in this process."""

    async def decode(self, audio: bytes, max_s: float, partial: bool = False) -> DecodedAudio:
        return read_audio(audio, max_s, partial)


async def first_partials(service: Service, rows: Sequence[Utterance]) -> list[float]:
    """Return the delay from the end of each clip's first word to the first delta, in ms; audio is sent in real time."""
    delays_ms: list[float] = []
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
                    delays_ms.append(1000 * (time.perf_counter() - begun - first_word_s))
                    break
            speaking.cancel()
    return delays_ms


async def _speak(socket: websockets.ClientConnection, pieces: Sequence[str], begun: float) -> None:
    """Send each piece at the time of its last sample."""
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


def percentile(answers: Sequence[Answer], percent: float) -> float:
    """Return a percentile of the latencies, in seconds."""
    return float(np.percentile([a.seconds for a in answers], percent))


def rtfx(turns: Turns, rows: Sequence[Utterance]) -> float:
    """Return audio seconds per second over all turns."""
    wall_s = sum(max(a.ended for a in turn) - min(a.begun for a in turn) for turn in turns)
    return sum(rows[a.clip].duration_s for a in flat(turns)) / wall_s


def table(answers: dict[int, list[Turns]], clients: Sequence[int], teacher: str, rows: Sequence[Utterance]) -> Table:
    shown = Table(title=f"{len(rows)} clips; student on Ray Serve | {teacher} in faster-whisper behind FastAPI")
    for column in ("clients", "p50 ms", "p95 ms", "p99 ms", "RTFx"):
        shown.add_column(column, justify="right")
    for n in clients:
        cells = [
            " | ".join(f"{1000 * percentile(flat(turns), percent):.0f}" for turns in answers[n])
            for percent in (50, 95, 99)
        ]
        speed = " | ".join(f"{rtfx(turns, rows):.1f}" for turns in answers[n])
        shown.add_row(str(n), *cells, speed)
    return shown


if __name__ == "__main__":
    one_line_errors.run(main)
