"""Send a thousand broken uploads to `askd serve`; count 5xx answers and dead replicas.

    python benchmarks/serve_badinput.py --bundle FOLDER [--uploads N] [--seed N] [--quick] [--json]

Real prompts as wav, flac, ogg, mp3, webm and m4a: truncated, with flipped bits, forged headers, wrong lengths in
headers (as in streams), joined, with gaps in their timestamps, at odd rates, as floats of any scale, with damaged
packets, wrong types, files that decode to hours, zero length, silence, eight channels, rates of 1 Hz and of 4 GHz,
file names with ../, and broken forms and HTTP (broken_forms.py). Each is sent once. A replica counts as dead if its
process was replaced. The sandbox's decoding processes do not count: a bad file may kill them. --json prints one line
of JSON at the end.
"""

import argparse
import asyncio
import io
import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import httpx
import numpy as np
import one_line_errors
import soundfile
from broken_forms import RawRequest, broken_request
from rich.table import Table
from served import Service, askd
from speech_rows import clips

from askd_ray.audio.decode import Waveform, decode
from askd_ray.progress import bar, console

CLIENTS = 8
FORMS_SHARE = 0.25  # share of requests with a broken form or broken HTTP instead of a broken file
Upload = tuple[str, bytes, dict[str, str]]
"""File name, content, and the other fields of the form."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n = 60 if options.quick else options.uploads
    rng = random.Random(options.seed)
    sounds = originals()
    with askd("student", "--model", f"student={options.bundle}") as service:
        outcome = asyncio.run(send(service, [random_upload(sounds, rng) for _ in range(n)]))
    shown = Table(title=f"{n} broken uploads; memory of the replicas grew by {outcome['memory_grew_mb']} MB")
    for column in ("status", "answers"):
        shown.add_column(column, justify="right")
    for status, count in sorted(outcome["statuses"].items()):
        shown.add_row(str(status), str(count))
    console.print(shown)
    five_xx = sum(count for status, count in outcome["statuses"].items() if status >= 500 or status == 0)
    result = {
        "tried": n,
        "five_xx": five_xx,
        "restarts": outcome["restarts"],
        "memory_grew_mb": outcome["memory_grew_mb"],
    }
    if options.json:
        print(json.dumps(result))


def originals() -> dict[str, bytes]:
    """Return a prompt in several formats."""
    waveform = decode(clips(None, 3)[1].audio)
    sounds: dict[str, bytes] = {}
    for name, form, kind in (
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("mp3", "MP3", None),
    ):
        file = io.BytesIO()
        soundfile.write(file, waveform, 16_000, format=form, subtype=kind)
        sounds[name] = file.getvalue()
    sounds["webm"] = by_ffmpeg(waveform, "webm", "libopus", None)
    sounds["m4a"] = by_ffmpeg(waveform, "mp4", "aac", None)
    return sounds


def random_upload(sounds: dict[str, bytes], rng: random.Random) -> "Upload | RawRequest":
    """Return a broken file in a good form, or a good file in a broken one."""
    return broken_request(sounds["wav"], rng) if rng.random() < FORMS_SHARE else broken(sounds, rng)


def request_of(client: httpx.AsyncClient, url: str, upload: "Upload | RawRequest") -> httpx.Request:
    if isinstance(upload, RawRequest):
        headers = {"content-type": upload.content_type}
        return client.build_request(upload.method, url + upload.path, content=upload.body, headers=headers)
    name, content, fields = upload
    return client.build_request("POST", f"{url}/v1/audio/transcriptions", files={"file": (name, content)}, data=fields)


def by_ffmpeg(waveform: Waveform, container: str, codec: str, gap: tuple[float, float] | None) -> bytes:
    """Encode with FFmpeg; from ``gap[0]`` seconds on the times are ``gap[1]`` seconds later."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        frame.rate, frame.pts = 16_000, 0
        size = stream.codec_context.frame_size or 1024
        fit = av.AudioResampler(format=stream.format, layout="mono", rate=48_000, frame_size=size)
        for piece in [*fit.resample(frame), *fit.resample(None), None]:
            for packet in stream.encode(piece):
                if gap is not None and float(packet.pts * packet.time_base) >= gap[0]:
                    shift = round(gap[1] / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                out.mux(packet)
    return file.getvalue()


def broken(sounds: dict[str, bytes], rng: random.Random) -> Upload:
    """Return one upload that nobody should send."""
    name = rng.choice(list(sounds))
    how = rng.choice(list(WAYS.values()))
    content = how(sounds[name], rng)
    file = rng.choice([f"a.{name}", "../../etc/passwd", "a\x00b.wav", "", "x" * 300, "a.exe", "\u202egnp.wav"])
    fields = {"model": "student"}
    if rng.random() < 0.2:
        key, value = rng.choice(FIELDS)
        fields[key] = value
    return file, content, fields


def truncated(audio: bytes, rng: random.Random) -> bytes:
    return audio[: rng.randrange(len(audio))]


def flipped(audio: bytes, rng: random.Random) -> bytes:
    changed = bytearray(audio)
    for _ in range(rng.choice([1, 10, 1000])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def forged(audio: bytes, rng: random.Random) -> bytes:
    """Change the first bytes, where the headers are."""
    changed = bytearray(audio)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(min(64, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def strange_wav(audio: bytes, rng: random.Random) -> bytes:
    """A WAV file with any rate and number of channels, and sizes that may lie."""
    rate = rng.choice([0, 1, 3999, 8000, 44_100, 384_001, 2**32 - 1])
    channels, bits = rng.choice([0, 1, 2, 8, 255, 65_535]), rng.choice([0, 8, 16, 24, 32, 64])
    data = audio[44 : 44 + rng.choice([0, 2, 1000, 60_000])]
    size = rng.choice([len(data), 0, 2**31, 2**32 - 1])
    block = max(1, channels * bits // 8)
    form = struct.pack(
        "<HHIIHH", rng.choice([1, 3, 6, 7, 0xFFFE]), channels, rate, rate * block % 2**32, block % 2**16, bits
    )
    head = b"RIFF" + struct.pack("<I", (36 + size) % 2**32) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + data


def lying_wav(audio: bytes, rng: random.Random) -> bytes:
    """A WAV file that declares what streams declare, at rates that few use, in samples of any scale."""
    waveform = decode(audio)[: 16_000 * rng.choice([1, 3])]
    kind, scale = rng.choice([("PCM_16", 1.0), ("FLOAT", 1.0), ("FLOAT", 32_767.0), ("FLOAT", 1e9), ("FLOAT", 1e30)])
    file = io.BytesIO()
    rate_hz = rng.choice([8_001, 11_127, 16_000, 16_001, 44_101, 47_999, 383_999])
    soundfile.write(file, waveform * np.float32(scale), rate_hz, format="WAV", subtype=kind)
    changed = bytearray(file.getvalue())
    n_bytes = rng.choice([0, 100, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, len(changed), len(changed) + 44])
    at = changed.index(b"data") + 4
    changed[at : at + 4] = struct.pack("<I", n_bytes)
    changed[4:8] = struct.pack("<I", rng.choice([n_bytes, len(changed) - 8, 0]))
    return bytes(changed)


def gapped(audio: bytes, rng: random.Random) -> bytes:
    """Times that jump by milliseconds, by seconds, or by a year."""
    container, codec = rng.choice([("webm", "libopus"), ("matroska", "pcm_s16le"), ("mp4", "aac")])
    waveform = decode(audio)
    gap = (rng.choice([-1.0, 0.5, 1.0]), rng.choice([0.03, 2.0, 600.0, 7_100.0, 3e7]))
    return by_ffmpeg(waveform, container, codec, gap)


def damaged(audio: bytes, rng: random.Random) -> bytes:
    """Some bytes in a row overwritten, behind the headers."""
    n_bytes = rng.choice([1, 40, 400, 4_000])
    at = rng.randrange(len(audio) // 4, len(audio))
    return audio[:at] + rng.randbytes(n_bytes) + audio[at + n_bytes :]


def joined(audio: bytes, rng: random.Random) -> bytes:
    """Several files one behind the other, some of them cut."""
    pieces = [audio, audio[len(audio) // 2 :], audio[: len(audio) // 2], b"\0" * 500, b"TAG" + bytes(125)]
    return b"".join(rng.choices(pieces, k=rng.choice([2, 3, 200])))


def bomb(audio: bytes, rng: random.Random) -> bytes:
    """Some hours of silence in a small file."""
    file = io.BytesIO()
    seconds = rng.choice([600, 3 * 3600])
    with soundfile.SoundFile(file, "w", samplerate=rng.choice([8000, 48_000]), channels=1, format="FLAC") as sound:
        for _ in range(seconds // 60):
            sound.write(np.zeros(60 * 8000, np.int16))
    return file.getvalue()


def silent(audio: bytes, rng: random.Random) -> bytes:
    file = io.BytesIO()
    channels = rng.choice([1, 2, 8])
    soundfile.write(file, np.zeros((rng.choice([0, 1, 8000, 80_000]), channels)), 8000, format="WAV")
    return file.getvalue()


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "forged": forged,
    "strange": strange_wav,
    "lying": lying_wav,
    "gapped": gapped,
    "damaged": damaged,
    "joined": joined,
    "bomb": bomb,
    "silent": silent,
    "nothing": lambda audio, rng: b"",
    "noise": lambda audio, rng: rng.randbytes(rng.choice([1, 100, 100_000])),
    "text": lambda audio, rng: rng.choice(
        [b"<html>", b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
    ),
}
FIELDS = [
    ("model", "whisper-9"),
    ("model", "../student"),
    ("language", "xx"),
    ("temperature", "nan"),
    ("temperature", "1e999"),
    ("response_format", "exe"),
    ("prompt", "a" * 60_000),
    ("prompt", "\ud7ff\x00<|endoftext|>"),
    ("timestamp_granularities[]", "word"),
    ("chunking_strategy", "[" * 10_000),
    ("stream", "maybe"),
]


async def send(service: Service, uploads: "list[Upload | RawRequest]") -> dict[str, object]:
    """Send the uploads; return the counts of statuses, replaced replicas and memory growth."""
    statuses, waiting = Counter[int](), list(uploads)
    before, memory_mb = pids(service), service.memory_mb()
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        with bar("uploads", len(uploads), "upload") as progress:

            async def one() -> None:
                while waiting:
                    upload = waiting.pop()
                    try:
                        response = await client.send(request_of(client, service.url, upload))
                        statuses[response.status_code] += 1
                    except httpx.HTTPError:
                        statuses[0] += 1
                    progress.advance()

            await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return {
        "statuses": statuses,
        "restarts": len(before - pids(service)),
        "memory_grew_mb": round(service.memory_mb() - memory_mb),
    }


def pids(service: Service) -> set[int]:
    """Return the process ids of the replicas."""
    return {p.pid for name in ("Ingress", "Engine") for p in service.replicas(name)}


if __name__ == "__main__":
    one_line_errors.run(main)
